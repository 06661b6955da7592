"""Figures and a one-page HTML report from a run's records."""

from gossipfl.report.page import write_report

__all__ = ["write_report"]
