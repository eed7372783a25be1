"""What a study varies, written to study.json and read back."""

import json
from typing import Any

import pytest
from ray import tune

from search.analysis.declared import Domain, choices_of, differing_fields, domain_of
from search.execution.provenance import domain_as_json

DOMAINS = [
    (tune.grid_search([0.1, None]), Domain(values=(0.1, None), is_grid=True)),
    (tune.choice([16, 32]), Domain(values=(16, 32))),
    (tune.choice(["sgd", "adam"]), Domain(values=("sgd", "adam"))),
    (tune.uniform(0.1, 0.9), Domain(low=0.1, high=0.9, scale="linear")),
    (tune.loguniform(1e-4, 1.0), Domain(low=1e-4, high=1.0, scale="log")),
    (tune.quniform(0.0, 1.0, 0.25), Domain(low=0.0, high=1.0, scale="linear", step=0.25)),
    (tune.qloguniform(0.5, 8, 0.5), Domain(low=0.5, high=8, scale="log", step=0.5)),
    # Ray leaves out the upper end of whole numbers; here both ends can be drawn.
    (tune.randint(1, 5), Domain(low=1, high=4, scale="linear", is_whole=True)),
    (tune.lograndint(1, 100), Domain(low=1, high=99, scale="log", is_whole=True)),
    (tune.qrandint(3, 10, 2), Domain(low=4, high=10, scale="linear", step=2, is_whole=True)),
]


@pytest.mark.parametrize(("domain", "read"), DOMAINS, ids=lambda value: str(value)[:40])
def test_a_domain_is_read_as_it_was_written(domain: Any, read: Domain) -> None:
    assert domain_of(json.loads(json.dumps(domain_as_json(domain)))) == read


@pytest.mark.parametrize("value", [None, 0.3, "adamw", "a Float", "[1 Categorical", {"a": 1}, True])
def test_what_is_no_domain_is_fixed(value: object) -> None:
    assert domain_of(value) is None


@pytest.mark.parametrize(
    ("declared", "values"),
    [
        ({"grid_search": [16, 32]}, [16, 32]),
        ({"choice": [16, 32]}, [16, 32]),
        ("[16, 32] Categorical", [16, 32]),
        ({"range": [16, 32], "scale": "log"}, []),
        ("(16, 33) Integer", []),
    ],
)
def test_the_values_to_choose_from(declared: object, values: list[int]) -> None:
    assert choices_of({"vary": {"batch_size": declared}}, "batch_size") == values
    assert choices_of({"vary": {"batch_size": declared}}, "base_lr") == []


def test_an_older_record_of_the_same_choice_is_no_difference() -> None:
    old = {"vary": {"batch_size": "[16, 32] Categorical", "base_lr": "(0.1, 1) Float"}}
    new = {
        "vary": {
            "batch_size": {"choice": [16, 32]},
            "base_lr": {"range": [0.1, 1], "scale": "log"},
        }
    }
    # Nobody knows the scale of the older one.
    assert differing_fields(old, new) == {
        "base_lr": ("(0.1, 1) Float", {"range": [0.1, 1], "scale": "log"})
    }
    assert differing_fields(new, new) == {}
