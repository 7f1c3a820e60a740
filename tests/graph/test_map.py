"""The graph has the assets and edges of the snapshot, is connected, and has every asset in its group."""

from __future__ import annotations

from pathlib import Path

import pytest
from dagster import AssetKey, Definitions

from assets.definitions import throughline as build
from throughline.foundation.settings import PROJECT_ROOT

SNAPSHOT = Path(__file__).with_name("asset_graph.txt")
ROOMS = ["raw", "features", "training", "experiments", "batch", "evaluation", "deployment", "monitoring"]


@pytest.fixture(scope="module")
def definitions(tmp_path_factory: pytest.TempPathFactory) -> Definitions:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("THROUGHLINE_HOME", str(tmp_path_factory.mktemp("home")))
        return build()


def edges(definitions: Definitions) -> dict[str, list[str]]:
    graph = definitions.resolve_asset_graph()
    return {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }


def test_assets_and_edges_do_not_change_by_accident(definitions: Definitions) -> None:
    lines = [f"{key} <- {', '.join(parents) or '-'}" for key, parents in sorted(edges(definitions).items())]
    assert lines == SNAPSHOT.read_text().splitlines(), (
        f"The graph changed. If that is meant, put these lines into {SNAPSHOT.name}:\n" + "\n".join(lines)
    )


def test_the_graph_is_one_connected_whole_from_raw_to_endpoint(definitions: Definitions) -> None:
    parents = edges(definitions)
    neighbours: dict[str, set[str]] = {key: set() for key in parents}
    for key, above in parents.items():
        for parent in above:
            neighbours[key].add(parent)
            neighbours[parent].add(key)
    endpoint = "flight_delay/deployment/endpoint"
    reached, frontier = {endpoint}, [endpoint]
    while frontier:
        for neighbour in neighbours[frontier.pop()] - reached:
            reached.add(neighbour)
            frontier.append(neighbour)
    assert reached == set(parents)


def test_every_raw_table_feeds_the_endpoint(definitions: Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    upstream, frontier = set(), [AssetKey(["flight_delay", "deployment", "endpoint"])]
    while frontier:
        for parent in graph.get(frontier.pop()).parent_keys - upstream:
            upstream.add(parent)
            frontier.append(parent)
    raw = {key for key in graph.get_all_asset_keys() if key.path[1] == "raw"}
    assert raw <= upstream


def test_every_asset_is_in_its_room_and_says_what_it_is(definitions: Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.group_name == key.path[1], key
        assert node.group_name in ROOMS, key
        assert node.description, f"{key.to_user_string()} has no description"
        assert node.code_version, f"{key.to_user_string()} has no code version: it would never be known as unchanged"


def test_raw_and_features_have_a_freshness_policy(definitions: Definitions) -> None:
    graph = definitions.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        ticks = key.path[1] == "features" and key.path[2] not in {"feature_store", "online_store", "profile"}
        daily = key.path[1] == "raw" and key.path[2] != "planes"
        if ticks or daily:
            assert graph.get(key).freshness_policy is not None, key


def test_the_map_stays_short_enough_to_be_read() -> None:
    assert len((PROJECT_ROOT / "assets" / "definitions.py").read_text().splitlines()) < 60
