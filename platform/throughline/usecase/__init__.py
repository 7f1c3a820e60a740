"""The declaration of a use case (`usecases/*.yaml`): its typed model, a file per section, and its loader.

Owns: what a declaration may hold. Durations are written `90m`, `36h`, `14d`; days are local days of `timezone`.
"""

from throughline.usecase.base import parse_duration
from throughline.usecase.declaration import UseCase
from throughline.usecase.evaluation import Bound, CardStatement, Evaluation, Expectation, GateRule
from throughline.usecase.features import Online, Parity
from throughline.usecase.loader import get_usecase, load_object, load_usecase, load_usecases
from throughline.usecase.monitoring import Calibration, Monitoring
from throughline.usecase.prediction import RequestField
from throughline.usecase.sources import CONTRACT, Column, Drift, Expectations, SourceTable, Volume
from throughline.usecase.training import Choices, Range, Resources, Trainer
