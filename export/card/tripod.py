"""TRIPOD+AI, the checklist for prediction models of 2024: 27 items, 52 with their parts, in our own words."""

from __future__ import annotations

from xfeat.export.card.checklist import Checklist, Item

_TITLE, _BACKGROUND, _DATA, _PARTICIPANTS = "Title, abstract", "Introduction", "Methods: data", "Methods: participants"
_OUTCOME, _PREDICTORS, _ANALYSIS = "Methods: outcome", "Methods: predictors", "Methods: analysis"
_OPEN, _RESULTS, _DISCUSSION = "Open science", "Results", "Discussion"
_NOT_UPDATED = "the evaluation changes nothing in the model"

TRIPOD = Checklist(
    file="tripod-ai.md",
    name="TRIPOD+AI",
    source="Collins et al., TRIPOD+AI statement, BMJ 2024;385:e078378, doi:10.1136/bmj-2023-078378",
    items=(
        Item("1", _TITLE, "say that a prediction model is developed or evaluated, for whom, of which outcome"),
        Item("2", _TITLE, "abstract, after TRIPOD+AI for abstracts"),
        Item("3a", _BACKGROUND, "medical context; earlier models"),
        Item("3b", _BACKGROUND, "for which patients, at which point of care, for which users"),
        Item("3c", _BACKGROUND, "known health inequalities"),
        Item("4", _BACKGROUND, "objectives: development, evaluation or both"),
        Item("5a", _DATA, "sources of the data; whom they represent"),
        Item("5b", _DATA, "dates of the data"),
        Item("6a", _PARTICIPANTS, "setting: kind, number and places of the centres"),
        Item("6b", _PARTICIPANTS, "who was eligible", also=("data.left_out",), rest="criteria for patients"),
        Item("6c", _PARTICIPANTS, "treatments, and how they were taken into account"),
        Item(
            *("7", _DATA, "how data were prepared and checked"),
            rows=("model.preprocess", "data.unreadable"),
            also=("data.corrections", "data.left_out"),
            rest="whether this was alike for all groups of patients",
        ),
        Item("8a", _OUTCOME, "the outcome", also=("model.classes",), rest="how and when it was determined"),
        Item("8b", _OUTCOME, "who determined it"),
        Item("8c", _OUTCOME, "were they blinded to the images"),
        Item("9a", _PREDICTORS, "choice of predictors", also=("model.input",), rest="why the image alone is used"),
        Item(
            *("9b", _PREDICTORS, "definition of predictors"),
            rows=("model.input", "model.preprocess"),
            rest="how and when images were taken",
        ),
        Item("9c", _PREDICTORS, "who assessed predictors", not_applicable="pixels are not assessed by people"),
        Item("10", _DATA, "how the number of patients was decided, and whether it suffices"),
        Item("11", _DATA, "missing data", also=("data.unreadable",), rest="missing labels and values"),
        Item("12a", _ANALYSIS, "how data were divided", rows=("data.split", "data.images", "data.disjoint")),
        Item("12b", _ANALYSIS, "how predictors were transformed", rows=("model.preprocess",)),
        Item(
            *("12c", _ANALYSIS, "kind of model, how it was built, tuned and validated"),
            rows=("model.encoder", "model.head", "model.training", "model.selection", "data.internal"),
            rest="why this kind of model; how the settings were tuned",
        ),
        Item("12d", _ANALYSIS, "differences between centres", rows=("elsewhere.left_out",), also=("subgroups.gaps",)),
        Item(
            *("12e", _ANALYSIS, "measures: discrimination, calibration, clinical utility"),
            rows=("metrics.auc", "metrics.slope", "metrics.benefit"),
        ),
        Item("12f", _ANALYSIS, "updates of the model", not_applicable=_NOT_UPDATED),
        Item("12g", _ANALYSIS, "how predictions are computed", rows=("model.files", "point.threshold")),
        Item("13", _ANALYSIS, "classes of unequal size", rows=("model.imbalance", "data.classes")),
        Item("14", _ANALYSIS, "fairness", also=("subgroups.gaps",), rest="which groups matter here, and why"),
        Item("15", _ANALYSIS, "output, and how classes follow from it", rows=("model.output", "point.threshold")),
        Item(
            *("16", _ANALYSIS, "differences between training and evaluation data"),
            also=("data.external", "elsewhere.drop"),
            rest="differences in setting, eligibility and outcome",
        ),
        Item("17", _ANALYSIS, "ethics approval and consent"),
        Item("18a", _OPEN, "funding"),
        Item("18b", _OPEN, "conflicts of interest"),
        Item("18c", _OPEN, "protocol"),
        Item("18d", _OPEN, "registration"),
        Item("18e", _OPEN, "where the data can be had"),
        Item("18f", _OPEN, "where the code can be had"),
        Item("19", "Patient and public involvement", "how patients took part in the study"),
        Item(
            *("20a", _RESULTS, "flow of patients, numbers with and without the outcome"),
            rows=("data.patients", "data.classes"),
            rest="a flow diagram, from all patients on",
        ),
        Item(
            *("20b", _RESULTS, "characteristics of the patients, per setting"),
            also=("subgroups.gaps", "subgroups.values"),
            rest="characteristics of all patients",
        ),
        Item("20c", _RESULTS, "training and evaluation data compared"),
        Item("21", _RESULTS, "numbers in each analysis", rows=("data.images", "data.classes", "data.patients")),
        Item("22", _RESULTS, "the full model, so that others can use it", rows=("model.files", "model.input")),
        Item(
            *("23a", _RESULTS, "performance with intervals, also of key subgroups"),
            rows=("metrics.auc", "metrics.sensitivity", "metrics.intervals", "subgroups.gaps"),
        ),
        Item(
            *("23b", _RESULTS, "performance of each centre"),
            rows=("elsewhere.left_out",),
            also=("elsewhere.drop",),
        ),
        Item("24", _RESULTS, "results of updates", not_applicable=_NOT_UPDATED),
        Item("25", _DISCUSSION, "what the results mean, with regard to fairness and earlier studies"),
        Item("26", _DISCUSSION, "limitations", also=("limitation",), rest="limitations that no figure shows"),
        Item(
            *("27a", _DISCUSSION, "poor or missing images in use"),
            also=("ood.threshold", "ood.kinds"),
            rest="what users are to do with them",
        ),
        Item("27b", _DISCUSSION, "what users must do and know"),
        Item("27c", _DISCUSSION, "next steps"),
    ),
)
