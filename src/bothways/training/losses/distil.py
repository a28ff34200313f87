"""A student's vectors beside a teacher's: the same directions, or the same similarities."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bothways.training.losses.unit import unit

FEWEST_TEXTS = 3
"""With two, each has one other to be similar to, and the softmax over it is 1 whatever the vectors are."""


def cosine_distance(student: Float[Tensor, "rows dim"], teacher: Float[Tensor, "rows dim"]) -> Float[Tensor, ""]:
    """Mean of 1 - cosine of each row with the teacher's vector of the same text, in float32; from 0 to 2.

    No gradient goes to the teacher. Raises ValueError if the shapes differ.
    Source: Reimers and Gurevych 2020 (arXiv 2004.09813), eq. 1, of vectors with length 1: half their squared distance.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"cosine_distance: {_shape(student)} of the student, {_shape(teacher)} of the teacher. Project the "
            "student's vectors to the teacher's width, or use similarity_kl, which needs no common width."
        )
    return 1 - (unit(student) * unit(teacher.detach())).sum(dim=1).mean()


def similarity_kl(
    student: Float[Tensor, "rows dim"],
    teacher: Float[Tensor, "rows teacher_dim"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Mean over rows of KL(teacher || student), in nats, of how similar the row is to every other row of the batch.

    Either distribution is the softmax of cosines / temperature, in float32, without the row itself. The widths may
    differ. No gradient goes to the teacher. The loss is not multiplied by temperature squared.

    Raises ValueError if the numbers of rows differ or are below 3.
    Source: Passalis and Tefas 2018 (arXiv 1803.10837), sec. 3, with a softmax of cosines as kernel.
    """
    if len(student) != len(teacher):
        raise ValueError(
            f"similarity_kl: {_shape(student)} of the student, {_shape(teacher)} of the teacher. Row i of both is "
            "text i."
        )
    if len(student) < FEWEST_TEXTS:
        raise ValueError(
            f"similarity_kl: {len(student)} texts have no similarities to compare. Use batches of {FEWEST_TEXTS} or "
            "more."
        )
    taught = (_among_others(teacher.detach()) / temperature).log_softmax(dim=1)
    learned = (_among_others(student) / temperature).log_softmax(dim=1)
    return F.kl_div(learned, taught, reduction="batchmean", log_target=True)


def _among_others(vectors: Float[Tensor, "rows dim"]) -> Float[Tensor, "rows others"]:
    """Cosine of every row with every other one."""
    rows = unit(vectors)
    count = len(rows)
    # Without its last number the flat matrix cuts into rows that each begin with a number of the diagonal.
    return (rows @ rows.T).flatten()[:-1].view(count - 1, count + 1)[:, 1:].reshape(count, count - 1)


def _shape(vectors: Tensor) -> str:
    return f"{vectors.shape[0]} vectors of {vectors.shape[1]}"
