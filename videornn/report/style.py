"""How a report looks: light and dark, on wide and narrow screens, on paper."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbf9; --card: #ffffff; --ink: #1d2329; --soft: #5d6670; --faint: #e4e6e4; --track: #edefee;
  --main: #2563a8; --second: #c8621b; --good: #2c7a4b;
  --main-rgb: 37 99 168; --second-rgb: 200 98 27;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1b1f23; --ink: #e3e6e8; --soft: #98a1aa; --faint: #2d3338; --track: #262b30;
    --main: #6aa7e8; --second: #e8924f; --good: #68b98a;
    --main-rgb: 74 138 208; --second-rgb: 206 112 44;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 1160px; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1, h2, h3 { line-height: 1.2; font-weight: 650; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h1 { font-size: 2.2rem; margin: 0.1rem 0 0.6rem; }
h2 { font-size: 1.45rem; margin: 0 0 0.8rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 0.5rem; }
p { margin: 0.4rem 0 0.8rem; max-width: 75ch; overflow-wrap: anywhere; }
code, pre { font: 0.86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre {
  margin: 0.6rem 0; padding: 0.9rem 1.1rem; white-space: pre-wrap; background: var(--card);
  border: 1px solid var(--faint); border-radius: 8px;
}
a { color: var(--main); text-decoration: none; }
a:hover { text-decoration: underline; }
section { padding-top: 1.6rem; margin-top: 2.6rem; border-top: 1px solid var(--faint); }
summary { cursor: pointer; color: var(--main); padding: 0.3rem 0; }
details { margin: 0.8rem 0; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.85rem; }
.eyebrow { margin: 0; color: var(--soft); font-size: 0.85rem; letter-spacing: 0.04em; }
.lead { font-size: 1.1rem; }
.hint { color: var(--soft); font-size: 0.9rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1.4rem; margin-top: 1.6rem; }

.numbers {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(175px, 1fr)); gap: 0.9rem; margin: 1.6rem 0;
}
.numbers > div {
  background: var(--card); border: 1px solid var(--faint); border-radius: 10px; padding: 0.9rem 1.1rem;
}
.numbers dt { color: var(--soft); font-size: 0.85rem; }
.numbers dd { margin: 0; }
.numbers .value { font-size: 1.7rem; font-weight: 650; letter-spacing: -0.02em; }
.numbers .value small { font-size: 1rem; font-weight: 500; letter-spacing: 0; white-space: nowrap; }
.numbers .first .value { color: var(--main); }
.numbers .note { color: var(--soft); font-size: 0.82rem; line-height: 1.35; }

.scroll { overflow-x: auto; }
.scroll + p { margin-top: 1rem; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: 0.35rem 1.1rem 0.35rem 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--faint);
}
thead th { color: var(--soft); font-weight: 500; font-size: 0.82rem; vertical-align: bottom; }
tbody th { font-weight: 500; }
.settings th { white-space: nowrap; }
.settings td { overflow-wrap: anywhere; min-width: 6rem; }
.settings td:last-child { min-width: 14rem; color: var(--soft); }
.starts { margin: 0; padding: 0; list-style: none; color: var(--soft); font-size: 0.88rem; }
.bars, .pairs { width: 100%; max-width: 860px; }
.bars th:first-child, .pairs th:first-child { min-width: 6.5rem; max-width: 16rem; overflow-wrap: break-word; }
.bars td, .bars tbody th { padding-top: 0.2rem; padding-bottom: 0.2rem; border-bottom: 0; }
.bar { display: flex; align-items: center; gap: 0.6rem; min-width: 11rem; }
.bar .track {
  flex: 1; max-width: 22rem; height: 0.6rem; border-radius: 3px; background: var(--track); overflow: hidden;
}
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--main); }
.bar.second i { background: var(--second); }
.bar .value { flex: 0 0 auto; min-width: 3.2rem; font-size: 0.82rem; white-space: nowrap; }
.recall .value { min-width: 6.8rem; }
.columns { columns: 21rem; column-gap: 2rem; padding: 0; margin: 0.5rem 0; list-style: none; font-size: 0.8rem; }
.columns li {
  display: grid; grid-template-columns: 1fr 11.5rem; gap: 0.6rem; align-items: center; break-inside: avoid;
}
.columns .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.columns .bar { min-width: 0; }
.columns .value { min-width: 6.2rem; font-size: 0.75rem; }

.matrix td, .matrix th { border: 0; padding: 0; }
.matrix td { width: 2.3rem; min-width: 1.75rem; height: 2.1rem; text-align: center; vertical-align: middle; }
.matrix tbody td { border: 1px solid var(--page); background: var(--track); border-radius: 4px; }
.matrix tbody td.diagonal { background: rgb(var(--main-rgb) / 0.1); }
.matrix tbody td.right { background: rgb(var(--main-rgb) / calc(0.12 + 0.88 * var(--share))); }
.matrix tbody td.wrong { background: rgb(var(--second-rgb) / calc(0.15 + 0.85 * var(--share))); }
.matrix tbody td.strong { color: #fff; font-weight: 600; }
.matrix tbody th { padding-right: 0.7rem; text-align: right; vertical-align: middle; white-space: nowrap; }
.matrix thead th { vertical-align: bottom; }
.matrix thead th span {
  display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; padding-top: 0.5rem;
}
.matrix thead th { text-align: center; }
.matrix .corner { width: auto; min-width: 6rem; padding-right: 0.7rem; text-align: right; vertical-align: bottom;
  color: var(--soft); font-size: 0.75rem; }

figure { margin: 0; }
.charts { display: grid; gap: 1.4rem 1.8rem; margin-top: 1.2rem; }
.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.three { grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.chart { break-inside: avoid; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; }
.chart figcaption { font-size: 0.9rem; margin-bottom: 0.3rem; }
.chart strong { display: block; }
.chart small { color: var(--soft); font-weight: 400; }
.entry { display: inline-block; margin-right: 0.9rem; color: var(--soft); font-size: 0.82rem; white-space: nowrap; }
.entry b { color: var(--ink); font-weight: 600; }
.key {
  display: inline-block; width: 0.8rem; height: 0.8rem; border-radius: 3px; vertical-align: -0.08rem;
  margin-right: 0.3rem;
}
.entry .key { height: 0.2rem; vertical-align: 0.25rem; }
.key.main { background: var(--main); }
.key.second { background: var(--second); }
.bad.entry { color: var(--second); }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--faint); stroke-width: 1; }
svg .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 2 3; }
.line path { fill: none; stroke: var(--main); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line circle { fill: var(--main); }
.line polygon { fill: var(--main); opacity: 0.18; }
.second path { stroke: var(--second); }
.second circle { fill: var(--second); }
.second polygon { fill: var(--second); }
.line .cross { stroke: var(--second); stroke-width: 1.6; }

.pause { font-size: 0.88rem; color: var(--soft); }
.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(160px, 1fr)); gap: 1rem; padding: 0;
  margin: 0.6rem 0; list-style: none;
}
.card {
  display: flex; flex-direction: column; gap: 0.25rem; min-width: 0; font-size: 0.86rem; line-height: 1.35;
  break-inside: avoid;
}
.screen {
  display: grid; place-items: center; aspect-ratio: 4 / 3; overflow: hidden; border-radius: 8px;
  background: #0c0e10;
}
.clip { display: block; overflow: hidden; }
.clip.wide { width: 100%; }
.clip.tall { height: 100%; }
.clip img { display: block; height: 100%; width: 1200%; max-width: none; animation: frames 2s steps(12) infinite; }
@keyframes frames { to { transform: translateX(-100%); } }
.gone {
  padding: 0.8rem; background: var(--track); color: var(--soft); font-size: 0.78rem; text-align: center;
  overflow-wrap: anywhere;
}
.said::before { display: inline-block; width: 1.1em; font-weight: 700; }
.said.right::before { content: "\\2713"; color: var(--good); }
.said.wrong::before { content: "\\2717"; color: var(--second); }
.said { overflow-wrap: anywhere; }
.truth { display: block; padding-left: 1.1em; color: var(--second); }
.path { color: var(--soft); font-size: 0.75rem; overflow-wrap: anywhere; }
body:has(#still:checked) .clip img { animation-play-state: paused; }
@media (prefers-reduced-motion: reduce) {
  html { scroll-behavior: auto; }
  .clip img { animation: none; transform: translateX(-50%); }
  .pause { display: none; }
}

.sheet { margin: 1.6rem 0 2.2rem; break-inside: avoid; }
.sheet figcaption {
  display: flex; flex-wrap: wrap; align-items: baseline; gap: 0.2rem 1rem; margin-bottom: 0.5rem;
  font-size: 0.9rem;
}
.sheet .truth { display: inline; padding-left: 0.6em; }
.plate {
  display: inline-block; max-width: 100%; padding: 0.6rem; background: #fff; border: 1px solid var(--faint);
  border-radius: 8px;
}
.plate img { display: block; max-width: 100%; height: auto; }
.sheet .plate { min-width: 860px; }
.plate.small { width: 380px; }

@media (max-width: 560px) {
  body { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.7rem; }
  .numbers { grid-template-columns: 1fr 1fr; gap: 0.6rem; }
  .numbers > div { padding: 0.7rem 0.8rem; }
  .numbers .value { font-size: 1.35rem; }
  .bars .bar, .pairs .bar { min-width: 5.5rem; flex-wrap: wrap; gap: 0 0.4rem; }
  .bars .track, .pairs .track { flex: 1 0 100%; }
  th, td { padding-right: 0.7rem; }
  .settings thead { display: none; }
  .settings tr { display: block; padding: 0.5rem 0; border-bottom: 1px solid var(--faint); }
  .settings th, .settings td { display: block; padding: 0; border: 0; }
  .settings td:nth-child(3)::before { content: "default "; color: var(--soft); }
  .cards { grid-template-columns: 1fr 1fr; gap: 0.9rem 0.7rem; }
}
@media print {
  :root {
    color-scheme: light;
    --page: #fff; --card: #fff; --ink: #111; --soft: #555; --faint: #ddd; --track: #eee;
    --main: #2563a8; --second: #c8621b; --good: #2c7a4b; --main-rgb: 37 99 168; --second-rgb: 200 98 27;
  }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { padding: 0; max-width: none; font-size: 10.5pt; }
  nav, .pause, details:not([open]) { display: none; }
  section { margin-top: 1.2rem; padding-top: 1rem; }
  h2, h3, .hint, p:has(+ .scroll), p:has(+ figure), p:has(+ .charts) { break-after: avoid; }
  tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  .group { break-inside: avoid; }
  .two { grid-template-columns: 1fr 1fr; }
  .three { grid-template-columns: 1fr 1fr 1fr; }
  .cards { grid-template-columns: repeat(6, 1fr); }
  .clip img { animation: none; transform: translateX(-50%); }
  .sheet .plate { min-width: 0; }
}
"""
