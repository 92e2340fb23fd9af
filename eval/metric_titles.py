"""Every metric's title for people, in the order of tables, and which are better when lower.

A task adds the lines of its own metrics here; one that has none is shown by its name, after all others.
"""

from __future__ import annotations

METRIC_TITLES: dict[str, str] = {
    # regions
    "region_to_text_accuracy": "region → text, top-1",
    "region_balanced_accuracy": "region label, balanced accuracy",
    "text_to_region_recall@1": "text → region, R@1",
    "text_to_region_recall@5": "text → region, R@5",
    "text_to_region_recall@10": "text → region, R@10",
    "region_median_cosine": "two boxes, one image: median cosine ↓",
    "region_to_text_accuracy_in_image": "region → its text among those of the image",
    "text_to_region_accuracy_in_image": "text → its region among those of the image",
    "case_recall@1": "box and text → similar cases, R@1",
    "case_recall@5": "box and text → similar cases, R@5",
    "case_recall@10": "box and text → similar cases, R@10",
    "case_mean_average_precision": "box and text → similar cases, mean average precision",
    "case_recall_same_place@1": "box and text → cases with the finding in the same place, R@1",
    "case_recall_same_place@5": "box and text → cases with the finding in the same place, R@5",
    "case_recall_same_place@10": "box and text → cases with the finding in the same place, R@10",
    "case_mean_average_precision_same_place": "box and text → cases in the same place, mean average precision",
    # retrieval
    "image_to_text_recall@1": "image → text, R@1",
    "image_to_text_recall@5": "image → text, R@5",
    "image_to_text_recall@10": "image → text, R@10",
    "image_to_text_mrr": "image → text, mean reciprocal rank",
    "text_to_image_recall@1": "text → image, R@1",
    "text_to_image_recall@5": "text → image, R@5",
    "text_to_image_recall@10": "text → image, R@10",
    "text_to_image_mrr": "text → image, mean reciprocal rank",
    # zero-shot classification
    "macro_auroc": "zero-shot finding, macro AUROC",
    "macro_auroc_pos_neg": "zero-shot finding, presence against absence: macro AUROC",
    "macro_auroc_ensemble": "zero-shot finding, prompt ensemble: macro AUROC",
    "macro_auroc_given_boxes": "zero-shot finding, fused with given boxes: macro AUROC",
    "macro_auroc_proposed_boxes": "zero-shot finding, fused with proposals: macro AUROC",
    "macro_ap": "zero-shot finding, macro average precision",
    "macro_ap_pos_neg": "zero-shot finding, presence against absence: macro average precision",
    "macro_ap_given_boxes": "zero-shot finding, fused with given boxes: macro average precision",
    "macro_ap_proposed_boxes": "zero-shot finding, fused with proposals: macro average precision",
    "macro_f1": "zero-shot finding, macro F1 at tuned thresholds",
    "macro_f1_pos_neg": "zero-shot finding, presence against absence: macro F1 at tuned thresholds",
    "micro_auroc": "zero-shot finding, all pairs in one ranking: AUROC",
    "micro_auroc_pos_neg": "zero-shot finding, presence against absence, all pairs in one ranking: AUROC",
    "micro_ap": "zero-shot finding, all pairs in one ranking: average precision",
    "micro_ap_pos_neg": "zero-shot finding, presence against absence, all pairs in one ranking: average precision",
    "zero_shot_accuracy": "zero-shot class of an image, accuracy",
    "zero_shot_balanced_accuracy": "zero-shot class of an image, balanced accuracy",
    "zero_shot_accuracy_given_boxes": "zero-shot class, fused with given boxes: accuracy",
    "zero_shot_balanced_accuracy_given_boxes": "zero-shot class, fused with given boxes: balanced accuracy",
    "zero_shot_accuracy_proposed_boxes": "zero-shot class, fused with proposals: accuracy",
    "zero_shot_balanced_accuracy_proposed_boxes": "zero-shot class, fused with proposals: balanced accuracy",
    # probes and calibration
    "probe_macro_auroc": "linear probe of images, finding: macro AUROC",
    "probe_balanced_accuracy": "linear probe of images, class: balanced accuracy",
    "probe_balanced_accuracy@1": "probe of images, 1 of each class: balanced accuracy",
    "probe_balanced_accuracy@4": "probe of images, 4 of each class: balanced accuracy",
    "probe_balanced_accuracy@16": "probe of images, 16 of each class: balanced accuracy",
    "region_probe_balanced_accuracy": "linear probe of regions, label: balanced accuracy",
    "region_probe_balanced_accuracy@1": "probe of regions, 1 of each label: balanced accuracy",
    "region_probe_balanced_accuracy@4": "probe of regions, 4 of each label: balanced accuracy",
    "region_probe_balanced_accuracy@16": "probe of regions, 16 of each label: balanced accuracy",
    "expected_calibration_error": "finding shown: expected calibration error ↓",
    "expected_calibration_error_scaled": "finding shown, temperature scaled: expected calibration error ↓",
    "expected_calibration_error_platt": "finding shown, Platt scaled: expected calibration error ↓",
    "brier_score": "finding shown: Brier score ↓",
    "brier_score_scaled": "finding shown, temperature scaled: Brier score ↓",
    "brier_score_platt": "finding shown, Platt scaled: Brier score ↓",
    "top_label_calibration_error": "class of an image: expected calibration error of the answer ↓",
    "top_label_calibration_error_scaled": "class of an image, temperature scaled: expected calibration error ↓",
    "multiclass_brier_score": "class of an image: Brier score (0 to 2) ↓",
    "multiclass_brier_score_scaled": "class of an image, temperature scaled: Brier score (0 to 2) ↓",
    # grounding and counterfactual texts
    "grounding_contrast_to_noise_ratio": "phrase heat: contrast to noise, signed",
    "grounding_contrast_to_noise_ratio_absolute": "phrase heat: contrast to noise, absolute (BioViL)",
    "grounding_pointing_game": "phrase heat: pointing game",
    "grounding_mean_iou": "phrase heat: mean IoU at the tuned threshold",
    "grounding_presence_auroc": "phrase heat: shown or absent, AUROC",
    "grounding_box_f1": "phrase → boxes: F1 at IoU 0.5",
    "grounding_box_recall": "phrase → boxes: recall at IoU 0.5",
    "grounding_box_precision": "phrase → boxes: precision at IoU 0.5",
    "grounding_absent_accuracy": "absent phrase → no box",
    "counterfactual_pair_accuracy": "true or false text of a region, pairs",
    "counterfactual_pair_accuracy_laterality": "true or false text of a region, pairs: side",
    "counterfactual_pair_accuracy_place": "true or false text of a region, pairs: place",
    "counterfactual_pair_accuracy_size": "true or false text of a region, pairs: size",
    "counterfactual_pair_accuracy_severity": "true or false text of a region, pairs: severity",
    "counterfactual_pair_accuracy_negation": "true or false text of a region, pairs: denial",
    "counterfactual_pair_accuracy_finding": "true or false text of a region, pairs: finding",
    "counterfactual_pair_accuracy_normality": "image normal or not, pairs of captions",
    "counterfactual_accuracy": "true text of a region beats all false ones",
    "counterfactual_accuracy_laterality": "true text of a region beats all false ones: side",
    "counterfactual_accuracy_place": "true text of a region beats all false ones: place",
    "counterfactual_accuracy_size": "true text of a region beats all false ones: size",
    "counterfactual_accuracy_severity": "true text of a region beats all false ones: severity",
    "counterfactual_accuracy_negation": "true text of a region beats all false ones: denial",
    "counterfactual_accuracy_finding": "true text of a region beats all false ones: finding",
    "place_accuracy": "region → right place among other places",
    "laterality_accuracy": "region → right side of the two",
    # robustness
    "region_to_text_accuracy_jitter@10": "region → text, top-1, boxes jittered by 10 %",
    "region_to_text_accuracy_jitter@20": "region → text, top-1, boxes jittered by 20 %",
    "region_jitter_cosine@10": "a box jittered by 10 %: mean cosine",
    "region_jitter_cosine@20": "a box jittered by 20 %: mean cosine",
    "region_to_text_accuracy_drop_jitter@10": "a box jittered by 10 %: region → text lost ↓",
    "region_to_text_accuracy_drop_jitter@20": "a box jittered by 20 %: region → text lost ↓",
    "region_to_text_accuracy_drop_noise@5": "noise of 5 %: region → text lost ↓",
    "region_to_text_accuracy_drop_noise@15": "noise of 15 %: region → text lost ↓",
    "region_to_text_accuracy_drop_contrast@60": "contrast cut to 60 %: region → text lost ↓",
    "region_to_text_accuracy_drop_contrast@30": "contrast cut to 30 %: region → text lost ↓",
    "region_to_text_accuracy_drop_resolution@96": "96 pixels a side: region → text lost ↓",
    "region_to_text_accuracy_drop_resolution@48": "48 pixels a side: region → text lost ↓",
    "region_to_text_accuracy_drop_window@10": "window moved by 10 %: region → text lost ↓",
    "region_to_text_accuracy_drop_window@25": "window moved by 25 %: region → text lost ↓",
    "image_cosine_noise@5": "noise of 5 %: cosine of the image with itself",
    "image_cosine_noise@15": "noise of 15 %: cosine of the image with itself",
    "image_cosine_contrast@60": "contrast cut to 60 %: cosine of the image with itself",
    "image_cosine_contrast@30": "contrast cut to 30 %: cosine of the image with itself",
    "image_cosine_resolution@96": "96 pixels a side: cosine of the image with itself",
    "image_cosine_resolution@48": "48 pixels a side: cosine of the image with itself",
    "image_cosine_window@10": "window moved by 10 %: cosine of the image with itself",
    "image_cosine_window@25": "window moved by 25 %: cosine of the image with itself",
    # proposals
    "proposal_recall": "proposals: recall at IoU 0.5, boxes of a patch or more",
    "proposal_recall_small": "proposals: recall at IoU 0.5, smaller boxes",
    "proposal_recall_at_threshold": "proposals at the threshold: recall at IoU 0.5, boxes of a patch or more",
    "proposals_per_empty_image": "proposals on an image without regions ↓",
}
_QUESTIONS = {  # metric of visual questions without its suffix
    "vqa_accuracy": "all questions",
    "vqa_open_accuracy": "open questions",
    "vqa_closed_accuracy": "closed questions",
    "vqa_marked_accuracy": "questions that mark a region",
    "vqa_unmarked_accuracy": "questions that mark none",
}
_SHOWN = {  # suffix
    "": "the image, no region",
    "_given_boxes": "regions given",
    "_proposed_boxes": "regions proposed",
    "_blank_image": "black image",
    "_blank_image_given_boxes": "black image, regions given",
    "_shuffled_image": "another patient's image",
    "_shuffled_image_given_boxes": "another patient's image, regions given",
    "_majority": "most frequent training answer",
    "_zero_shot": "nearest statement",
    "_zero_shot_given_boxes": "nearest statement, of the marked region",
}
METRIC_TITLES |= {
    f"{metric}{suffix}": f"{questions} answered right: {shown}"
    for suffix, shown in _SHOWN.items()
    for metric, questions in _QUESTIONS.items()
}
METRIC_TITLES |= {
    "vqa_marked_gain_given_boxes": "questions that mark a region: gained by giving it",
    "vqa_unmarked_gain_given_boxes": "questions that mark none: gained by giving regions",
    "vqa_gain_proposed_boxes": "all questions: gained by proposed regions",
    "vqa_gain_image": "all questions: gained by the image over a black one",
}
METRIC_ORDER: tuple[str, ...] = tuple(METRIC_TITLES)
LOWER_IS_BETTER: frozenset[str] = frozenset(
    {
        "region_median_cosine",
        "region_to_text_accuracy_drop_jitter@10",
        "region_to_text_accuracy_drop_jitter@20",
        "region_to_text_accuracy_drop_noise@5",
        "region_to_text_accuracy_drop_noise@15",
        "region_to_text_accuracy_drop_contrast@60",
        "region_to_text_accuracy_drop_contrast@30",
        "region_to_text_accuracy_drop_resolution@96",
        "region_to_text_accuracy_drop_resolution@48",
        "region_to_text_accuracy_drop_window@10",
        "region_to_text_accuracy_drop_window@25",
        "proposals_per_empty_image",
        "expected_calibration_error",
        "expected_calibration_error_scaled",
        "expected_calibration_error_platt",
        "brier_score",
        "brier_score_scaled",
        "brier_score_platt",
        "top_label_calibration_error",
        "top_label_calibration_error_scaled",
        "multiclass_brier_score",
        "multiclass_brier_score_scaled",
    }
)


def metric_title(metric: str) -> str:
    """The metric as a reader's phrase: "image → text, R@1"; its name where it has no title."""
    return METRIC_TITLES.get(metric, metric)


def metric_place(metric: str) -> int:
    """The metric's place in tables; one that has no title comes after all that have one."""
    return METRIC_ORDER.index(metric) if metric in METRIC_TITLES else len(METRIC_ORDER)
