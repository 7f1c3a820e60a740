"""Evaluation: the candidate on the weeks held out by time, and the gate that decides on its release."""

from dagster import AssetExecutionContext, AssetsDefinition, Definitions, MetadataValue, Output, ResourceParam, asset

from assets.resources import record_of
from assets.training import GROUP as TRAINING
from throughline.clock import WallClock
from throughline.evaluation.evaluate import evaluate_candidate
from throughline.evaluation.gate import decide
from throughline.records import DatasetRecord, EvaluationRecord, GateDecision, ModelRecord
from throughline.settings import Settings
from throughline.usecase import UseCase

GROUP = "evaluation"


def evaluation_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_evaluation(usecase), _gate(usecase)])


def _evaluation(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "evaluation"],
        group_name=GROUP,
        kinds={"onnx", "mlflow"},
        description="Candidate, champion and constant on the same held-out rows.",
        code_version="1",
        ins={
            "dataset": record_of(usecase, TRAINING, "dataset"),
            "model": record_of(usecase, TRAINING, "model"),
        },
    )
    def evaluation(
        context: AssetExecutionContext, settings: ResourceParam[Settings], dataset: DatasetRecord, model: ModelRecord
    ) -> Output[EvaluationRecord]:
        record = evaluate_candidate(settings, usecase, dataset, model)
        return Output(
            record,
            metadata={
                "model": record.model,
                "auc": record.candidate.auc,
                "log_loss": record.candidate.log_loss,
                "brier": record.candidate.brier,
                "ece": record.candidate.ece,
                "constant_log_loss": record.constant.log_loss,
                "champion": record.champion_model or "none yet",
                "rows": record.candidate.rows,
            },
        )

    return evaluation


def _gate(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "gate"],
        group_name=GROUP,
        description="Release or reject, with every rule's number and bound. What cannot be said fails.",
        code_version="1",
        ins={
            "model": record_of(usecase, TRAINING, "model"),
            "evaluation": record_of(usecase, GROUP, "evaluation"),
        },
    )
    def gate(context: AssetExecutionContext, model: ModelRecord, evaluation: EvaluationRecord) -> Output[GateDecision]:
        decision = decide(evaluation, model, usecase.gate, WallClock().now())
        for rule in decision.rules:
            context.log.info(str(rule))
        context.log.info(f"{decision.model}: {decision.decision}")
        return Output(
            decision,
            metadata={
                "decision": decision.decision,
                "model": decision.model,
                "rules": MetadataValue.md(
                    "\n".join(
                        ["| rule | verdict | value | bound |", "|---|---|---|---|"]
                        + [f"| {r.rule} | {r.verdict} | {r.value} | {r.bound} |" for r in decision.rules]
                    )
                ),
            },
        )

    return gate
