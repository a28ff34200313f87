"""tf-idf: how far counting words goes on the same task. Every table shows it, because many encoders do not reach it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer

from bothways.evaluation.tasks import Classification, Clustering, Similarity, Task


class TfIdf:
    """Unit rows of tf-idf weights (logarithmic counts, English stop words left out), idf from the task's documents."""

    def __init__(self, documents: Iterable[str]) -> None:
        self.vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
        self.vectorizer.fit(documents)

    @classmethod
    def of(cls, task: Task) -> TfIdf:
        """Fitted to what is searched, compared, sorted or learnt from; queries and texts to be told are not seen."""
        if isinstance(task, Similarity):
            return cls([*task.first, *task.second])
        if isinstance(task, Classification):
            return cls(task.train)
        if isinstance(task, Clustering):
            return cls(task.texts)
        return cls(document.text for document in task.documents)

    def encode_query(self, texts: Sequence[str], /) -> Any:
        """Sparse rows, shape (texts, words); a text of unknown words alone is a row of zeros."""
        return self.vectorizer.transform(texts)

    encode_document = encode_query
