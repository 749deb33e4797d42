"""What tests of several folders use: places, a tiny loader, what a run has logged, a server of files."""

from __future__ import annotations

import http.server
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from videornn.config import DataConfig
from videornn.data.annotations.table import VideoTable
from videornn.data.loader import build_loader
from videornn.data.plan import BatchPlan, BatchShape, Phase
from videornn.data.shared_batch import Batch

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/quickstart.yaml"
CLOCK = ("clips_per_second", "data_wait", "mfu", "memory_gb")  # what differs from run to run
SMALL = DataConfig(num_frames=4, temporal_stride=2, crop_size=16, short_side=(16, 24), num_workers=0)


def batches_of(table: VideoTable, count: int, **arguments: int) -> list[Batch]:
    workers = arguments.pop("num_workers", 0)
    section = SMALL.model_copy(update={"num_workers": workers})
    return list(itertools.islice(build_loader(section, table, plan=plan_of(len(table), 4), seed=5, **arguments), count))


def plan_of(num_videos: int, batch: int) -> BatchPlan:
    return BatchPlan(num_videos, [Phase(20, (BatchShape(batch, 4, 16),))])


def records(run: Path) -> list[dict]:
    """metrics.jsonl of a run folder without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


@contextmanager
def served(content: bytes, *, sent: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """URL of a file on loopback, of which only so many bytes are sent, and the requests that came."""
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:sent])

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/video", requests
    finally:
        server.shutdown()
        server.server_close()
