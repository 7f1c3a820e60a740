"""Rules and alerts are valid, each alert is tested, and explains itself."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import needs
from throughline.foundation.settings import PROJECT_ROOT

FOLDER = PROJECT_ROOT / "deploy" / "observability"
CASES = Path(__file__).with_name("alerts.test.yml")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_promtool_finds_no_fault_in_configuration_and_rules() -> None:
    needs("promtool")
    command = ["promtool", "check", "config", FOLDER / "prometheus.yml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_on_what_it_is_for_and_not_beside_it() -> None:
    needs("promtool")
    done = subprocess.run(["promtool", "test", "rules", CASES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    cases = CASES.read_text()
    assert [alert["alert"] for alert in alerts() if f'{{alertname="{alert["alert"]}"' not in cases] == []


def test_each_alert_says_what_is_wrong_what_to_do_and_where_the_rest_stands() -> None:
    headings = {
        line.removeprefix("### ").lower()
        for line in (PROJECT_ROOT / "docs" / "observability.md").read_text().splitlines()
        if line.startswith("### ")
    }
    for alert in alerts():
        assert alert["labels"]["severity"] in {"warning", "critical"}
        annotations = alert["annotations"]
        assert set(annotations) == {"summary", "action", "runbook"}, alert["alert"]
        page, _, anchor = annotations["runbook"].partition("#")
        assert page == "docs/observability.md"
        assert anchor == alert["alert"].lower()
        assert anchor in headings, f"{alert['alert']} has no runbook"
    assert headings == {alert["alert"].lower() for alert in alerts()}, "a runbook without its alert"


def test_the_page_describes_every_metric_that_is_queried() -> None:
    text = "".join((FOLDER / name).read_text() for name in ("rules.yml", "alerts.yml", "dashboard.json"))
    page = (PROJECT_ROOT / "docs" / "observability.md").read_text()
    queried = {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"throughline_[a-z_]+[a-z]", text)}
    assert len(queried) > 10
    collected = "throughline_collector_events_"
    assert [
        name
        for name in queried
        if f"`{name}`" not in page
        and f"`{name.removeprefix(collected)}`" not in page
        and name != "throughline_collector_events"
    ] == []


def test_the_dashboards_panels_have_ids_and_places_of_their_own_and_use_the_chosen_prometheus() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z_]+)", json.dumps(dashboard))) - {"__rate_interval", "__all"}
    assert used <= variables
