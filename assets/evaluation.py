"""Evaluation: the candidate on the weeks held out by time, and the gate that decides on its release."""

from typing import Any

from dagster import AssetExecutionContext, AssetsDefinition, Definitions, MetadataValue, Output, ResourceParam, asset

from assets.code import code_version
from assets.resources import record_of
from assets.training import GROUP as TRAINING
from throughline.evaluation.card import Card, render_markdown
from throughline.evaluation.card_store import publish_card
from throughline.evaluation.evaluate import evaluate_candidate
from throughline.evaluation.gate import decide, former_champion
from throughline.evaluation.publish import publish
from throughline.foundation.clock import WallClock
from throughline.foundation.settings import PROJECT_ROOT, Settings
from throughline.records import DatasetRecord, EvaluationRecord, GateDecision, ModelRecord
from throughline.registry import decisions
from throughline.registry.champions import line_of
from throughline.registry.history import events
from throughline.usecase import UseCase

GROUP = "evaluation"
EVALUATES = (
    "assets.evaluation",
    "throughline.evaluation.evaluate",
    "throughline.evaluation.slices",
    "throughline.evaluation.bootstrap",
    "throughline.evaluation.baseline",
    "throughline.models.metrics",
)
DECIDES = ("assets.evaluation", "throughline.evaluation.gate", "throughline.registry.decisions")
DESCRIBES = (
    "assets.evaluation",
    "throughline.evaluation.card",
    "throughline.evaluation.card_store",
    *(PROJECT_ROOT / f"platform/throughline/evaluation/card.{kind}.j2" for kind in ("html", "md")),
)


def evaluation_assets(usecase: UseCase) -> Definitions:
    return Definitions(assets=[_evaluation(usecase), _gate(usecase), _card(usecase)])


def _evaluation(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "evaluation"],
        group_name=GROUP,
        kinds={"onnx", "mlflow"},
        description="Candidate, champion, constant and simple rule on the same held-out rows, in every slice.",
        code_version=code_version(EVALUATES, usecase.evaluation, usecase.prediction),
        ins={
            "dataset": record_of(usecase, TRAINING, "dataset"),
            "model": record_of(usecase, TRAINING, "model"),
        },
    )
    def evaluation(
        context: AssetExecutionContext, settings: ResourceParam[Settings], dataset: DatasetRecord, model: ModelRecord
    ) -> Output[EvaluationRecord]:
        record = evaluate_candidate(settings, usecase, dataset, model)
        if record.comparison:
            context.log.warning(record.comparison)
        report = MetadataValue.url(publish(settings, model, record))
        return Output(record, metadata={"model": str(record.model), "report": report, **told_of_evaluation(record)})

    return evaluation


def told_of_evaluation(record: EvaluationRecord) -> dict[str, Any]:
    return {
        "auc": record.candidate.auc,
        "log_loss": record.candidate.log_loss,
        "brier": record.candidate.brier,
        "ece": record.candidate.ece,
        "constant_log_loss": record.constant.log_loss,
        "champion": record.comparison or str(record.champion_model or "none yet"),
        "held_out_rows": record.candidate.rows,
        "slices": len(record.slices),
    }


def _gate(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "gate"],
        group_name=GROUP,
        description="Release, wait or reject, with every rule's number and bound. A missing number fails its rule.",
        code_version=code_version(DECIDES, *usecase.gate.values(), usecase.release, *usecase.gate, *usecase.approvers),
        ins={
            "model": record_of(usecase, TRAINING, "model"),
            "evaluation": record_of(usecase, GROUP, "evaluation"),
        },
    )
    def gate(
        context: AssetExecutionContext,
        settings: ResourceParam[Settings],
        model: ModelRecord,
        evaluation: EvaluationRecord,
    ) -> Output[GateDecision]:
        line = line_of(events(settings, usecase.name))
        further = [former_champion(model)] if model.reference in line.former else []
        if usecase.release.policy == "manual":
            further.append(decisions.approval_of(settings, usecase, model))
        decision = decide(evaluation, model, usecase.gate, WallClock().now(), line.champion, further)
        decision = decisions.recorded(settings, usecase.name, decision)
        for rule in decision.rules:
            context.log.info(str(rule))
        context.log.info(f"{decision.model}: {decision.decision}")
        return Output(
            decision,
            metadata={
                "decision": decision.decision,
                "model": str(decision.model),
                "sha256": decision.sha256,
                "compared_with": str(decision.compared_with or "no champion yet"),
                "rules": MetadataValue.md(
                    "\n".join(
                        ["| rule | verdict | value | bound |", "|---|---|---|---|"]
                        + [f"| {r.rule} | {r.verdict} | {r.value} | {r.bound} |" for r in decision.rules]
                    )
                ),
            },
        )

    return gate


def _card(usecase: UseCase) -> AssetsDefinition:
    @asset(
        key=[usecase.name, GROUP, "card"],
        group_name=GROUP,
        kinds={"markdown", "mlflow"},
        description="The model card of the candidate, signed: facts from the graph, statements from the declaration.",
        code_version=code_version(DESCRIBES, usecase.card, usecase.goal, usecase.business_metric, *usecase.owners),
        ins={
            "dataset": record_of(usecase, TRAINING, "dataset"),
            "model": record_of(usecase, TRAINING, "model"),
            "evaluation": record_of(usecase, GROUP, "evaluation"),
            "gate": record_of(usecase, GROUP, "gate"),
        },
    )
    def card(
        context: AssetExecutionContext,
        settings: ResourceParam[Settings],
        dataset: DatasetRecord,
        model: ModelRecord,
        evaluation: EvaluationRecord,
        gate: GateDecision,
    ) -> Output[Card]:
        report = publish(settings, model, evaluation, gate)
        made = publish_card(settings, usecase, model, dataset, evaluation, gate)
        content = MetadataValue.md(render_markdown(made))
        return Output(made, metadata={"model": str(made.model), "card": content, "report": MetadataValue.url(report)})

    return card
