"""The report: one self-contained HTML page per alignment, or for several, or for a spec.

A report of alignments is made from the JSON form of their results alone, so a page can be made long
after the search.
"""

from gpu_align._report._learning_page import render_learning, write_learning
from gpu_align._report._page import Study, render_report, write_report
from gpu_align._report._study import beam_width_study
from gpu_align._report._symmetries import render_symmetries, write_symmetries
from gpu_align._report._zoo_page import render_zoo, write_zoo_report

__all__ = [
    "Study",
    "beam_width_study",
    "render_learning",
    "render_report",
    "render_symmetries",
    "render_zoo",
    "write_learning",
    "write_report",
    "write_symmetries",
    "write_zoo_report",
]
