"""The MedRegion corpus: records, texts by template, sources and the streaming `datasets` builder."""
