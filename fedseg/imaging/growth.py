"""Volume by gestational age: a published reference, and how far it may be trusted for labels of another protocol.

A growth curve belongs to the protocol that drew its labels. On FeTA-style labels of normal atlases (21 to 37 weeks),
King's College's curves give z = 4 to 13 for deep grey matter and 2 to 10 for the brainstem: the borders of these
tissues are drawn elsewhere. So there is no z-score here, and no tissue is compared by itself. All brain tissue
together (fluid left out) has a border that both protocols share: it is turned into the age at which the reference has
that volume, and only a difference of several weeks means something.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedseg.labels import FETA, LabelScheme

TISSUES = ("cortical_grey_matter", "white_matter", "cerebellum", "deep_grey_matter", "brainstem")
"""What is summed: FeTA's classes but for the fluid."""


@dataclass(frozen=True)
class GrowthReference:
    """Mean volume of all brain tissue by gestational age: a + b g + c g^2, g in weeks, mL.

    Args:
        name: What to call it in a report.
        source: Where its numbers stand.
        weeks: Youngest and oldest age that it covers.
        coefficients: (a, b, c); the curve rises over `weeks`.
        tolerance_weeks: Least difference in age that counts, for labels of FeTA's protocol.
    """

    name: str
    source: str
    weeks: tuple[float, float]
    coefficients: tuple[float, float, float]
    tolerance_weeks: float

    def mean_ml(self, weeks: float) -> float:
        """The mean volume at an age."""
        a, b, c = self.coefficients
        return a + b * weeks + c * weeks**2

    def weeks_of(self, volume_ml: float) -> float:
        """The age at which the mean is `volume_ml`; may lie outside `weeks`, where the curve is a guess."""
        a, b, c = self.coefficients
        return (-b + math.sqrt(max(0.0, b * b - 4 * c * (a - volume_ml)))) / (2 * c)


KCL_PARENCHYMA = GrowthReference(
    name="King's College London, Multi-BOUNTI report for fetal MRI, total parenchyma",
    source=(
        "https://github.com/SVRTK/perinatal-brain-mri-analysis, "
        "scripts/auto-reporting-multi-bounti-brain-volumetry-fetal.py, total_parenchyma_volume"
    ),
    weeks=(20.0, 40.0),
    coefficients=(-14.5841, -5.21711, 0.358001),
    tolerance_weeks=4.0,
)
"""Standard deviation 10 mL at 30 weeks and 19 mL at 36 in the same source: about a week of growth.

FeTA-style labels of 21 normal atlas volumes lie -0.1 to 2.5 weeks above it, spina bifida atlases -1.6 to 1.3: a
tolerance of four weeks leaves room for two standard deviations beyond that.
"""


def reference_for(scheme: LabelScheme) -> GrowthReference | None:
    """The reference whose border is that of the scheme's labels; None where there is none, as for brain masks.

    A brain mask may or may not hold the fluid around the brain, so its volume is not comparable.
    """
    return KCL_PARENCHYMA if scheme == FETA else None
