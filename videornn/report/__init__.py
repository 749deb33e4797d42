"""A run as one HTML page that needs nothing else: no network, no scripts, every picture inside."""

from __future__ import annotations

from videornn.report.write import write_report

__all__ = ["write_report"]
