"""What a reader opens: a page per clip, the demo's page, and a timeline for the terminal or a notebook."""

from avel.web.notebook import timeline_snippet
from avel.web.page import clip_beside, demo_page, timeline_page
from avel.web.terminal import PlainConsole, terminal_timeline

__all__ = ["PlainConsole", "clip_beside", "demo_page", "terminal_timeline", "timeline_page", "timeline_snippet"]
