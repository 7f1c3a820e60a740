"""The standard pipeline: one use case in, its whole graph out. The order of the rooms is the order of the thread."""

from dagster import Definitions

from assets.arrivals import arrivals
from assets.automation import automation
from assets.batch import batch_assets
from assets.catalogue import catalogue_assets
from assets.deployment import deployment_assets
from assets.evaluation import evaluation_assets
from assets.experiments import experiments
from assets.features import feature_assets
from assets.monitoring import monitoring_assets
from assets.online import online_assets
from assets.raw import raw_assets
from assets.rollouts import rollouts
from assets.training import training_assets
from throughline.foundation.settings import Settings
from throughline.usecase import UseCase


def pipeline(usecase: UseCase, settings: Settings) -> Definitions:
    """Assets, checks, jobs and sensors of one declared use case."""
    rooms = (
        raw_assets(usecase),
        feature_assets(usecase, settings),
        online_assets(usecase),
        catalogue_assets(usecase),
        training_assets(usecase),
        evaluation_assets(usecase),
        deployment_assets(usecase),
        rollouts(usecase),
        monitoring_assets(usecase),
        batch_assets(usecase),
    )
    return Definitions.merge(*rooms, experiments(usecase), arrivals(usecase, settings), automation(usecase))
