"""A row's id in JSON Lines: `pmid` in PubMedQA's files, `id` in those of other data. Standard library only."""

ID_KEYS = ("pmid", "id")


def id_of(row):
    return next(row[key] for key in ID_KEYS if key in row)
