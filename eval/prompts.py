"""Prompts: the one place where class names become sentences."""

from __future__ import annotations

from regionmed_clip.processing.corpus.grammar import capitalize, counted

PRESENCE_TEMPLATES = ("{study} with {one_finding}.", "{finding}")


def presence_prompts(study: str, finding: str) -> tuple[str, ...]:
    """The sentences that say that an image shows `finding`; their embeddings are averaged.

    Args:
        study: what the images are, as captions name it: "axial CT of the abdomen".
        finding: lower case noun phrase: "pulmonary nodule".
    """
    one_finding = counted("", finding, "one")
    return tuple(
        capitalize(template.format(study=study, one_finding=one_finding, finding=finding))
        if template.startswith("{study}")
        else template.format(finding=finding)
        for template in PRESENCE_TEMPLATES
    )
