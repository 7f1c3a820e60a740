"""The trainer of `flight_delay`. Run as `python -m training.flight_delay.train SPEC.json`, alone or under horovodrun.

Owns: the parameters. Does not own: architecture (`network.py`), loop and export (`training.loop`).
"""

from __future__ import annotations

import sys

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from throughline.errors import ThroughlineError
from throughline.experiment.spec import TrainingSpec
from training import worker


class Parameters(BaseModel):
    """What `trainer.parameters` of the declaration may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(8, ge=1)
    batch_size: int = Field(256, ge=1, description="Per worker.")
    learning_rate: float = Field(0.001, gt=0)
    hidden: list[int] = Field([128, 64], description="Widths of the hidden layers.")
    dropout: float = Field(0.1, ge=0, lt=1)
    embedding: int = Field(8, ge=1, description="Largest width of a category's embedding.")
    weight_decay: float = Field(1e-4, ge=0)
    seed: int = Field(0, ge=0)


def train(spec: TrainingSpec) -> None:
    """Raises `ThroughlineError` for a parameter that is not one."""
    try:
        parameters = Parameters.model_validate(spec.parameters)
    except ValidationError as error:
        first = error.errors()[0]
        raise ThroughlineError(f"Parameter {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
    # Here, because torch and Horovod take seconds, which a wrong parameter need not wait for.
    from training import loop
    from training.flight_delay.network import Network

    loop.run(
        spec,
        parameters,
        lambda preprocessing, base_rate: Network(
            preprocessing, base_rate, parameters.hidden, parameters.dropout, parameters.embedding
        ),
    )


if __name__ == "__main__":
    sys.exit(worker.main(train, sys.argv[1:]))
