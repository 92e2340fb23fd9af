"""The licences of the sources behind a data spec, for what must be said wherever something is trained on them."""

from __future__ import annotations

from regionmed_clip.processing.corpus.built_corpus import BuiltCorpus
from regionmed_clip.processing.corpus.data_spec import DataSpec, open_sources


def data_licences(spec: DataSpec) -> list[dict[str, str]]:
    """{"name", "license"} of every source of `spec` and every licence of its images, sorted; of all splits.

    Of a built corpus the licence is that of each row, which may differ within a source; two columns are read.
    """
    found: set[tuple[str, str]] = set()
    for part, _ in spec.terms():
        if part.kind != "corpus":
            found.update((source.name, source.license) for source in open_sources(part))
            continue
        corpus = BuiltCorpus(part.folder or "")
        for split in corpus.splits():
            for table in corpus.tables(split, columns=("source", "license")):
                pairs = table.group_by(["source", "license"]).aggregate([])
                found.update(zip(pairs["source"].to_pylist(), pairs["license"].to_pylist(), strict=True))
    return [{"name": name, "license": license_name} for name, license_name in sorted(found)]
