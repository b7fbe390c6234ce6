"""What a reader opens: a page per clip, one over several, the demo's, and a timeline for the terminal or a notebook."""

from avel.web.index import check_index, index_page
from avel.web.notebook import timeline_snippet
from avel.web.page import clip_beside, demo_page, timeline_page
from avel.web.terminal import terminal_timeline

__all__ = [
    "check_index",
    "clip_beside",
    "demo_page",
    "index_page",
    "terminal_timeline",
    "timeline_page",
    "timeline_snippet",
]
