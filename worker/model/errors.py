"""What can be wrong with a model, each in one sentence a user can act on."""


class ModelError(Exception):
    """A model cannot be added, opened or removed; the message says what was found and what to do."""


class UnsupportedModel(ModelError):
    """The weights are readable, but of a kind that Gristmill cannot run."""


class NoChatTemplate(UnsupportedModel):
    """The model says nothing of conversations."""

    def __init__(self, origin: str) -> None:
        super().__init__(
            f"{origin} has no chat template, so it was not made for conversations; if you know how it should be asked, "
            "give a template with --chat-template FILE"
        )


class UnreadableWeights(ModelError):
    """The file is not what its name says, or part of it is missing."""


class SourceUnavailable(ModelError):
    """The weights could not be fetched from where they are kept."""


class UnknownModel(ModelError):
    """Nothing is known under this name, or the name cannot be one."""


class DamagedModel(ModelError):
    """A model folder lacks something, or holds something else than what was written."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
