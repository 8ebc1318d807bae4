"""The states of a batch, a chunk and a file, and the only moves between them.

    validating ──► in_progress ──► finalizing ──► completed
        │  │            │   │          │  └─────► expired
        │  │            │   └──────────┤
        │  ▼            ▼              ▼
        │ failed    cancelling ──► cancelled
        └───────────────▲

Every UPDATE that moves a state takes its WHERE from `sources`, so of two processes that try the same
move one finds nothing to move. A trigger in the database refuses to change a terminal batch.
"""

from enum import StrEnum


class BatchState(StrEnum):
    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


class ChunkState(StrEnum):
    READY = "ready"
    LEASED = "leased"
    DONE = "done"
    VOID = "void"  # sealed by cancel or expiry: nothing can be written to it any more


class FileState(StrEnum):
    UPLOADING = "uploading"
    READY = "ready"


class UploadState(StrEnum):
    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # never stored: what is pending and past its time


BATCH_MOVES: dict[BatchState, frozenset[BatchState]] = {
    BatchState.VALIDATING: frozenset({BatchState.FAILED, BatchState.IN_PROGRESS, BatchState.CANCELLING}),
    BatchState.IN_PROGRESS: frozenset({BatchState.FINALIZING, BatchState.CANCELLING}),
    BatchState.FINALIZING: frozenset({BatchState.COMPLETED, BatchState.EXPIRED, BatchState.CANCELLING}),
    BatchState.CANCELLING: frozenset({BatchState.CANCELLED}),
    BatchState.FAILED: frozenset(),
    BatchState.COMPLETED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}

TERMINAL = frozenset(state for state, moves in BATCH_MOVES.items() if not moves)


def sources(target: BatchState) -> list[str]:
    """The states from which a batch may move to `target`, sorted, as the database spells them."""
    return sorted(state.value for state, moves in BATCH_MOVES.items() if target in moves)
