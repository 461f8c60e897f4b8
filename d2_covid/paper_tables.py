"""What the paper publishes: its Tables 1, 2 and 3, transcribed, and what must be said about some of their figures.

A. Ter-Sarkisov, "Lightweight Model For The Prediction of COVID-19 Through The Detection And Segmentation of Lesions in
Chest CT Scans", 2020. Rows are in the paper's order and named by the configs that train such a model, below
``configs/segmentation`` and ``configs/classification``. Shares are in percent, as d2_covid reports them; the paper
prints those of Table 2 as fractions (0.4995 for 49.95). Nothing here was measured by d2_covid.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSize:
    """A row of Table 1: millions of parameters; ``trainable`` is None where the paper leaves it blank."""

    name: str
    words: str
    total: float
    trainable: float | None = None


@dataclass(frozen=True)
class SegmentationRow:
    """A row of Table 2: the paper's own average precision (:mod:`d2_covid.evaluation.paper_ap`) of masks on its
    validation split, in percent, and the training time."""

    name: str
    words: str
    ap50: float
    ap75: float
    ap: float
    minutes: float
    mask_type: str = "merge"


@dataclass(frozen=True)
class ClassificationRow:
    """A row of Table 3: sensitivity to each class and overall accuracy on COVIDx-CT's test split, in percent, and the
    training time.

    ``detector`` is the segmentation config whose model the classifier starts from.
    """

    name: str
    words: str
    detector: str
    covid: float
    pneumonia: float
    control: float
    accuracy: float
    minutes: float

    @property
    def accuracy_of_classes(self) -> float:
        """The overall accuracy that the row's own class sensitivities amount to on :data:`TEST_SLICES`, in percent."""
        sensitivity = (self.control, self.pneumonia, self.covid)
        return sum(share * n for share, n in zip(sensitivity, TEST_SLICES, strict=True)) / sum(TEST_SLICES)


SIZES = (
    ModelSize("mask_rcnn_R_50_FPN", "Mask R-CNN (ResNet50+FPN)", 31.78),
    ModelSize("mask_rcnn_R_18_full_FPN", "Mask R-CNN (ResNet18+FPN)", 14.52),
    ModelSize("mask_rcnn_R_18_T1_FPN", "Mask R-CNN (ResNet18-T1+FPN)", 6.12),
    ModelSize("mask_rcnn_R_18_T2_FPN", "Mask R-CNN (ResNet18-T2+FPN)", 4.02),
    ModelSize("mask_rcnn_R_34_full_FPN", "Mask R-CNN (ResNet34+FPN)", 24.63),
    ModelSize("mask_rcnn_R_34_T1_FPN", "Mask R-CNN (ResNet34-T1+FPN)", 11.45),
    ModelSize("mask_rcnn_R_34_T2_FPN", "Mask R-CNN (ResNet34-T2+FPN)", 4.68),
    ModelSize("covid_ct_mask_net_R_50_FPN", "COVID-CT-Mask-Net (ResNet50+FPN)", 34.14, 2.36),
    ModelSize("covid_ct_mask_net_R_18_full_FPN", "COVID-CT-Mask-Net (ResNet18+FPN)", 14.75, 0.6),
    ModelSize("covid_ct_mask_net_R_18_T1_FPN", "COVID-CT-Mask-Net (ResNet18-T1+FPN)", 6.35, 0.6),
    ModelSize("covid_ct_mask_net_R_18_T2_FPN", "COVID-CT-Mask-Net (ResNet18-T2+FPN)", 4.25, 0.6),
    ModelSize("covid_ct_mask_net_R_34_full_FPN", "COVID-CT-Mask-Net (ResNet34+FPN)", 24.86, 0.6),
    ModelSize("covid_ct_mask_net_R_34_T1_FPN", "COVID-CT-Mask-Net (ResNet34-T1+FPN)", 11.74, 0.6),
    ModelSize("covid_ct_mask_net_R_34_T2_FPN", "COVID-CT-Mask-Net (ResNet34-T2+FPN)", 4.92, 0.6),
)
"""Table 1, the rows that are models of the paper."""

TABLE_2 = (
    SegmentationRow("mask_rcnn_R_18_full_FPN", "ResNet18+FPN", 36.99, 28.98, 31.37, 128.75),
    SegmentationRow("mask_rcnn_R_18_T1_FPN", "ResNet18-T1+FPN", 49.95, 37.78, 39.32, 108.8),
    SegmentationRow("mask_rcnn_R_18_T2_FPN", "ResNet18-T2+FPN", 49.93, 38.52, 37.59, 126.9),
    SegmentationRow("mask_rcnn_R_34_full_FPN", "ResNet34+FPN", 53.57, 33.33, 34.65, 119.23),
    SegmentationRow("mask_rcnn_R_34_T1_FPN", "ResNet34-T1+FPN", 59.88, 45.06, 44.76, 134.01),
    SegmentationRow("mask_rcnn_R_34_T2_FPN", "ResNet34-T2+FPN", 44.91, 31.18, 34.04, 129.2),
    SegmentationRow("mask_rcnn_R_50_FPN", "ResNet50+FPN (merged masks)", 61.92, 45.22, 44.68, 137.38),
    SegmentationRow("mask_rcnn_R_50_FPN_both", "ResNet50+FPN (separate masks)", 50.20, 41.98, 38.71, 145.54, "both"),
)

TABLE_3 = tuple(
    ClassificationRow(f"covid_ct_mask_net_{model}", words, f"mask_rcnn_{model}", *figures)
    for model, words, *figures in (
        ("R_18_full_FPN", "ResNet18+FPN", 87.51, 77.31, 74.57, 78.18, 151.2),
        ("R_18_T1_FPN", "ResNet18-T1+FPN", 91.35, 91.63, 96.98, 93.95, 106.6),
        ("R_18_T2_FPN", "ResNet18-T2+FPN", 84.05, 85.81, 93.01, 88.66, 113.66),
        ("R_34_full_FPN", "ResNet34+FPN", 86.98, 94.27, 71.12, 82.45, 163.81),
        ("R_34_T1_FPN", "ResNet34-T1+FPN", 91.76, 91.70, 94.36, 92.89, 144.73),
        ("R_34_T2_FPN", "ResNet34-T2+FPN", 89.25, 93.32, 92.11, 91.99, 112.6),
        ("R_50_FPN", "ResNet50+FPN (merged masks)", 92.68, 96.69, 97.74, 96.63, 430.0),
        ("R_50_FPN_both", "ResNet50+FPN (separate masks)", 93.88, 95.06, 96.91, 95.64, 460.0),
    )
)

TEST_SLICES = (9450, 7395, 4346)
"""Control, common pneumonia and COVID-19 slices of the test split of COVIDx-CT's first release: the row sums of the
confusion matrices that the paper's author publishes with the program. They add up to 21,191 (the paper's abstract; the
caption of its Table 3 says 21,192)."""

TRAINING_SLICES = 3000
"""Of COVIDx-CT's training split, for every classifier."""

VALIDATION_PATIENTS = (
    2, 9, 16, 24, 29, 46, 55, 63, 70, 88, 92, 98, 110, 116, 123, 128, 133, 136, 139, 149,
)  # fmt: skip
"""Patients 0 to 149 of CNCB's lesion set (five slices each) that the lists published with the paper's program validate
on: 100 slices; the other 130 patients, 650 slices, train."""

TABLE_2_NOTES = (
    "The paper says 500 training and 150 validation slices in its text, 600 and 150 in its Table 1; the lists that are "
    "published with its program have 650 slices of 130 patients and 100 of the other 20.",
    "The paper's text gives ResNet18-T1 an accuracy of 0.4269; the 0.3932 of its Table 2 and introduction stands here.",
    "The paper does not say which weights its Mask R-CNNs start from.",
)

TABLE_3_NOTES = (
    "ResNet34-T1: the paper's Table 3 has a control sensitivity of 94.36 % and an overall accuracy of 92.89 %; its "
    "class figures amount to 92.90 %. The page of the paper's program has 92.89 % in both columns; with that control "
    "sensitivity the class figures amount to 92.24 %.",
    "ResNet50 with merged masks: Table 3 has an overall accuracy of 96.63 %; its class figures amount to 96.34 %, and "
    "the page of the program says 96.33 %. ResNet34-T2: 91.99 %, and the class figures amount to 91.95 %.",
    "The paper counts 21,192 test slices in the caption of Table 3 and 21,191 in its abstract; COVIDx-CT's first "
    "release has 21,191.",
)


def size_of(name: str) -> ModelSize | None:
    """The row of Table 1 of a config, such as ``mask_rcnn_R_18_T1_FPN``; None where the paper has none."""
    return next((row for row in SIZES if row.name == name), None)


def segmentation_row(name: str) -> SegmentationRow | None:
    """The row of Table 2 of a segmentation config; None where the paper has none."""
    return next((row for row in TABLE_2 if row.name == name), None)


def classification_row(name: str) -> ClassificationRow | None:
    """The row of Table 3 of a classification config; None where the paper has none."""
    return next((row for row in TABLE_3 if row.name == name), None)
