"""CLAIM, the checklist for AI in medical imaging, as updated in 2024: 44 items, in our own words."""

from __future__ import annotations

from xfeat.export.card.checklist import Checklist, Item

_TITLE, _INTRODUCTION, _DESIGN, _DATA = "Title, abstract", "Introduction", "Study design", "Data"
_REFERENCE, _SPLITS, _TESTING, _MODEL = "Reference standard", "Data partitions", "Testing data", "Model"
_TRAINING, _EVALUATION, _RESULTS = "Training", "Evaluation", "Results"
_DISCUSSION, _OTHER = "Discussion", "Other information"

_METRICS = ("metrics.accuracy", "metrics.auc")

CLAIM = Checklist(
    file="claim-2024.md",
    name="CLAIM 2024",
    source="Tejani et al., Checklist for Artificial Intelligence in Medical Imaging (CLAIM): 2024 Update, "
    "Radiology: Artificial Intelligence 2024;6(4):e240300, doi:10.1148/ryai.240300",
    items=(
        Item("1", _TITLE, "say that AI was used, and which kind"),
        Item("2", _TITLE, "summarise design, methods, results and conclusions"),
        Item("3", _INTRODUCTION, "clinical background; what the model is for"),
        Item("4", _INTRODUCTION, "aims and hypotheses"),
        Item("5", _DESIGN, "were data collected before or after the study was planned"),
        Item("6", _DESIGN, "goal of the study"),
        Item("7", _DATA, "where the data come from"),
        Item(
            "8", _DATA, "who and what was included or excluded", also=("data.left_out",), rest="criteria for patients"
        ),
        Item("9", _DATA, "how images were prepared", rows=("model.preprocess",)),
        Item("10", _DATA, "which part of the data was used", also=("data.left_out",), rest="why this part of the data"),
        Item("11", _DATA, "how data were de-identified"),
        Item("12", _DATA, "how missing data were treated", also=("data.unreadable",), rest="missing labels and values"),
        Item("13", _DATA, "how images were acquired"),
        Item("14", _REFERENCE, "how the true class was determined"),
        Item("15", _REFERENCE, "why in this way"),
        Item("16", _REFERENCE, "who labelled the images, with which training"),
        Item("17", _REFERENCE, "how the test images were labelled"),
        Item("18", _REFERENCE, "how well the readers agree with each other and with themselves"),
        Item("19", _SPLITS, "how images were assigned to the splits", rows=("data.split", "data.images")),
        Item("20", _SPLITS, "level of the splits: image, patient or institution", rows=("data.disjoint",)),
        Item("21", _TESTING, "how many test images were intended, and why"),
        Item("22", _MODEL, "the model in detail", rows=("model.encoder", "model.head", "model.input", "model.output")),
        Item("23", _MODEL, "software and versions", rows=("software.training",), also=("software.export",)),
        Item("24", _MODEL, "initial parameters", rows=("model.initial", "model.weights")),
        Item("25", _TRAINING, "training in detail", rows=("model.training",)),
        Item("26", _TRAINING, "how the final model was selected", rows=("model.selection",)),
        Item("27", _TRAINING, "ensembles", rows=("model.ensemble",)),
        Item("28", _EVALUATION, "which metrics", rows=_METRICS, also=("external.accuracy", "external.auc")),
        Item("29", _EVALUATION, "uncertainty and significance", rows=("metrics.intervals",)),
        Item("30", _EVALUATION, "robustness", also=("ood.kinds",), rest="other analyses of robustness"),
        Item("31", _EVALUATION, "explanations", also=("model.heatmap",), rest="how the heatmaps were validated"),
        Item("32", _EVALUATION, "evaluation on internal data", rows=("data.internal", *_METRICS)),
        Item(
            *("33", _EVALUATION, "test on external data"),
            rows=("data.external",),
            also=("data.seen", "elsewhere.left_out"),
        ),
        Item("34", _EVALUATION, "registration of a clinical trial"),
        Item(
            *("35", _RESULTS, "how many patients or images were included and excluded"),
            rows=("data.images", "data.patients", "data.unreadable"),
            also=("data.left_out",),
            rest="patients who were excluded; a flow diagram",
        ),
        Item(
            *("36", _RESULTS, "demographic and clinical characteristics per split"),
            also=("subgroups.gaps", "subgroups.values"),
            rest="the characteristics of every split",
        ),
        Item("37", _RESULTS, "metrics with their uncertainty", rows=(*_METRICS, "metrics.intervals")),
        Item(
            *("38", _RESULTS, "diagnostic performance and its precision"),
            rows=("metrics.sensitivity", "metrics.specificity", "metrics.intervals"),
        ),
        Item("39", _RESULTS, "wrong predictions", also=("metrics.errors",), rest="why they are wrong"),
        Item("40", _DISCUSSION, "limitations", also=("limitation",), rest="limitations that no figure shows"),
        Item("41", _DISCUSSION, "what follows for practice"),
        Item("42", _OTHER, "where the full protocol is"),
        Item("43", _OTHER, "where software, model and data can be had", also=("model.files",), rest="the places"),
        Item("44", _OTHER, "funding, and the role of funders"),
    ),
)
