"""Which model is packed."""

from d2_covid.errors import UserError
from d2_covid.zoo.pack import best_record

import pytest


def test_the_best_is_the_best_on_ct_unless_its_recipe_is_named(record):
    data = {"test": [{"name": "phantom_merge_val", "slices": 210}]}
    phantom = record("phantom", seed=17, ap50=77.0, data=data)
    records = [record(ap50=30.0), record(seed=2, ap50=31.0), phantom]
    assert best_record(records, "segm/AP50", model="R18-T1") is records[1]
    assert best_record(records, "segm/AP50", recipe="phantom") is phantom
    with pytest.raises(UserError, match="No finished record has a figure segm/AP50 on CT; name a recipe"):
        best_record([phantom], "segm/AP50")
    mixed = record("tuned", start="phantoms", ap50=88.0, data=data)
    assert best_record([*records, mixed], "segm/AP50", recipe="tuned") is records[1]


def test_classifiers_are_judged_on_ct_too(record):
    figures = {"image/accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}
    data = {"test": [{"name": "covid_ct_val", "slices": 118}]}
    classifier = record("classifier", kind="classifier", start="x", metrics=figures, data=data)
    assert best_record([record(), classifier], "image/accuracy") is classifier
    with pytest.raises(UserError, match="No finished record of R34-T1 has a figure image/accuracy.$"):
        best_record([classifier], "image/accuracy", model="R34-T1")
