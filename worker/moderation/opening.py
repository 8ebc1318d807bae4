"""Makes the filter that the operator's settings ask for."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from jobs.settings import Settings, SettingsError
from worker import engine, model
from worker.moderation import classifier_folder, guard_formats, words
from worker.moderation.content_filter import ContentFilter
from worker.moderation.guard import Guard
from worker.moderation.judge import Judge

GUARD_SLOTS: Final = 16  # a verdict is a few tokens
GUARD_FRAME_TOKENS: Final = 512  # what a guard model reads beside the text


@contextmanager
def opened(settings: Settings) -> Iterator[ContentFilter | None]:
    """The filter while it is used, None where none is chosen.

    SettingsError and ModelError say in one sentence what keeps it from judging.
    """
    if settings.filter_labels and not settings.filter_classifier:
        raise SettingsError("GRISTMILL_FILTER_LABELS is of no use without GRISTMILL_FILTER_CLASSIFIER.")
    judges: list[Judge] = []
    engines: list[engine.Engine] = []
    with ExitStack() as stack:
        if settings.filter_words is not None:
            judges.append(words.read(settings.filter_words))
        if settings.filter_classifier is not None:
            folder, labels = settings.filter_classifier, settings.filter_labels
            judges.append(stack.enter_context(classifier_folder.opened(folder, labels)))
        if settings.filter_guard is not None:
            guard, inference = _guard(settings, settings.filter_guard)
            engines.append(stack.enter_context(inference))
            judges.append(guard)
        if not judges:
            yield None
            return
        chosen = ContentFilter(judges, engines)
        chosen.prove(settings.watchdog_seconds)
        yield chosen


def _guard(settings: Settings, name: str) -> tuple[Guard, engine.Engine]:
    folder = model.open_named(name, settings.data_dir / "models")
    form = guard_formats.of_template(folder.chat_template())
    if form is None:
        raise model.UnsupportedModel(
            f"the model '{name}' is not a guard model that is known here: Llama Guard 3 or Granite Guardian 3"
        )
    inference = engine.load(
        folder,
        engine.EngineSettings(
            threads=settings.threads,
            context_tokens_max=settings.sequence_tokens + GUARD_FRAME_TOKENS,
            slots_max=GUARD_SLOTS,
        ),
    )
    return Guard(inference.submit, folder.tokenizer(), form, context_tokens=inference.context_tokens), inference
