"""The report: one self-contained HTML page per alignment, or for several.

It is made from the JSON form of a result alone, so a page can be made long after the search.
"""

from gpu_align._report._page import render_report, write_report
from gpu_align._report._study import beam_width_study

__all__ = ["beam_width_study", "render_report", "write_report"]
