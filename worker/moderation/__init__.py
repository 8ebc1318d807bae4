"""What may be asked and what may be answered: texts judged by what the operator chose. Off unless chosen."""

from worker.moderation.content_filter import ContentFilter
from worker.moderation.opening import opened

__all__ = ["ContentFilter", "opened"]
