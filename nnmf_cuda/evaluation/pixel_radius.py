"""How far pixels may move before features leave a ball in which the answer is proven.

A proof about features becomes one about images by the Lipschitz constant of the projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnmf_cuda import ops
from nnmf_cuda.models.features import FeatureExtractor, l2_normalize
from nnmf_cuda.reference.nnmf import as_float

_ROWS = 256
"""Images that are at once in float64."""


_BELOW = 1 - 1e-6
"""Keeps radii below what some hundred operations in float64, and the edge itself, could change."""


@dataclass(frozen=True)
class PixelCertificate:
    """Certified radii of images, in units of the pixel range [0, 1].

    Attributes
    ----------
    l2 : array of shape (n_samples,)
        L2 radius in pixels within which features stay in their proven ball; 0 where that is 0.
    n_pixels : int
        Pixels of an image.
    sigma : float
        |h_S(x) - h_S(x')| <= |x - x'| / sigma for the coefficients of the selected components.
    """

    l2: NDArray[np.float64]
    n_pixels: int
    sigma: float

    @property
    def linf(self) -> NDArray[np.float64]:
        """Linf radii (n_samples,): |d|_2 <= sqrt(n_pixels) |d|_inf."""
        radii: NDArray[np.float64] = self.l2 / np.sqrt(self.n_pixels)
        return radii

    def certified_accuracy(self, eps: float, norm: str = "Linf") -> float:
        """Return the share of samples whose answer is proven, and so holds up to `eps` in pixels.

        At eps 0 that is the share of samples with a radius.
        """
        if norm not in ("Linf", "L2"):
            raise ValueError(f"norm must be Linf or L2, got {norm!r}")
        radii = self.linf if norm == "Linf" else self.l2
        return float(((radii >= eps) & (radii > 0)).mean())


def certify_pixels(
    extractor: FeatureExtractor, images: Tensor, feature_radii: Tensor, *, norm: str = "Linf"
) -> PixelCertificate:
    """Turn proven radii around features into certified radii around images.

    Parameters
    ----------
    extractor : FeatureExtractor
        Makes features of images.
    images : Tensor of shape (n, height * width) or (n, height, width)
        uint8 pixels, or floating point in [0, 1].
    feature_radii : Tensor of shape (n,)
        Radius of the ball around the features of each image in which the right answer is proven
        (`nnmf_cuda.robustness.verify`); 0 where it is not.
    norm : {"Linf", "L2"}, default="Linf"
        Norm of these balls.

    Returns
    -------
    PixelCertificate
        Of the chain in exact arithmetic, without the rounding of its float32 features (about 1e-7,
        of which what it moves the centers is subtracted).

    Raises
    ------
    ValueError
        If shapes or norm do not fit, or radii are negative or not finite.

    Notes
    -----
    Let H (k, p) be the components, G = H H^T regular, and h(x) the least |H^T h - x| over h >= 0.
    With b(x) = G^-1 H x, |H^T h - x|^2 = |h - b(x)|_G^2 + what does not depend on h, where
    |v|_G = |H^T v|: h(x) is the projection of b(x) onto the cone h >= 0 in the metric of G.
    Projections onto closed convex sets do not expand, so

        |H^T (h(x) - h(x'))| = |h - h'|_G <= |b - b'|_G = |H^T G^-1 H (x - x')| <= |x - x'| = d,

    the last since H^T G^-1 H projects orthogonally. The change D of the selected coefficients
    u = h_S is so in the ellipsoid of M = (G^-1)_SS: w D <= d |w|_M for every w, |w|_M^2 = w M w. In
    particular |D| <= d / sigma with 1 / sigma^2 the largest eigenvalue of M, and with all
    components selected sigma is the smallest singular value of H.

    Features are f = u / |u|; what was normalised before is another length only.

    *L2 ball of radius r.* |D| <= s < |u| turns u by at most the angle asin(s / |u|), and two unit
    vectors at the angle t are 2 sin(t / 2) apart. So d = sigma |u| sin(2 asin(r / 2)) is certified,
    with sin = 1 from r = sqrt(2) on.

    *Linf ball of radius r.* No feature passes c = f_i + r, if u_i + D_i <= c f (u + D), since
    f (u + D) <= |u + D|: as u_i = f_i |u|, if d |e_i - c f|_M <= r |u|. No feature falls below
    c = f_i - r (for c > 0; features are not negative), if u_i + D_i >= c w (u + D) for all unit
    w. With q = |w - f|, w f = 1 - q^2 / 2, and |e_i - c w|_M <= m + c q / sigma for
    m = |e_i - c f|_M, this holds if r |u| + c q^2 |u| / 2 - d (m + c q / sigma) >= 0, which is
    least at q = d / (sigma |u|): if d m + c d^2 / (2 sigma^2 |u|) <= r |u|. The certified d is the
    least over features and both sides, or the radius of the L2 ball inside where that is larger.

    Where u + D = 0 the features are 0: no point within d is such, but where 0 is within r of f.
    """
    if norm not in ("Linf", "L2"):
        raise ValueError(f"norm must be Linf or L2, got {norm!r}")
    rows = extractor.as_rows(images)
    radii = feature_radii.to(rows.device, torch.float64)
    if radii.shape != (len(rows),):
        raise ValueError(
            f"feature_radii must have shape ({len(rows)},), one for each image, got"
            f" {tuple(radii.shape)}"
        )
    if not bool((radii.isfinite() & (radii >= 0)).all()):
        raise ValueError("feature_radii must be finite and not negative")
    metric, sigma = selected_metric(extractor)
    found = [
        _radii(extractor, some, of, metric, sigma, norm)
        for some, of in zip(rows.split(_ROWS), radii.split(_ROWS), strict=True)
    ]
    return PixelCertificate(torch.cat(found).cpu().numpy(), rows.shape[1], sigma)


def selected_metric(extractor: FeatureExtractor) -> tuple[Tensor, float]:
    """Return M = (G^-1)_SS in float64, and sigma of `certify_pixels`, not larger than it is.

    Where G is singular but for rounding, coefficients may jump: sigma is 0.
    """
    wide = extractor.components.double()
    values, vectors = torch.linalg.eigh(wide @ wide.mT)
    # Sums of n_pixels products and eigh err by about this share of the largest eigenvalue.
    error = (wide.shape[1] + 8 * len(wide)) * torch.finfo(torch.float64).eps * values[-1]
    safe = values - error
    if bool(safe[0] <= 0):
        n = extractor.n_features
        return wide.new_full((n, n), torch.inf), 0.0
    of_selected = vectors[extractor.selected]
    metric = (of_selected / safe) @ of_selected.mT
    return metric, float(torch.linalg.eigvalsh(metric)[-1] ** -0.5)


def _radii(
    extractor: FeatureExtractor,
    rows: Tensor,
    radii: Tensor,
    metric: Tensor,
    sigma: float,
    norm: str,
) -> Tensor:
    if sigma == 0:
        return torch.zeros_like(radii)
    wide = extractor.components.double()
    x = as_float(rows, torch.float64).double()
    u = ops.nnls(wide @ wide.mT, x @ wide.mT)[:, extractor.selected]
    length = torch.linalg.vector_norm(u, dim=1)
    f = l2_normalize(u)
    off = torch.linalg.vector_norm(f - extractor(rows).double(), dim=1)
    radii = (radii - off).clamp_min(0)
    angle = 2 * torch.asin((radii / 2).clamp_max(0.5**0.5))
    found = sigma * length * torch.sin(angle)
    if norm == "Linf":
        by_feature = torch.minimum(*_by_feature(f, length, radii, metric, sigma))
        found = torch.maximum(found, by_feature.amin(1))
    # No two images are farther apart than the pixels' range, whatever the ball allows.
    return torch.where(length > 0, _BELOW * found.clamp_max(rows.shape[1] ** 0.5), 0)


def _by_feature(
    f: Tensor, length: Tensor, radii: Tensor, metric: Tensor, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return by how much (n, n_features) pixels may move until a feature grows or falls by r."""
    room, r = (radii * length).unsqueeze(1), radii.unsqueeze(1)

    def norm_of(c: Tensor) -> Tensor:
        """|e_i - c_i f|_M, written out."""
        along = f @ metric
        square = metric.diagonal() - 2 * c * along + c.square() * (along * f).sum(1, keepdim=True)
        return square.clamp_min(0).sqrt()

    grows = room / norm_of(f + r).clamp_min(1e-300)
    # A feature cannot be above 1, nor below 0.
    grows = torch.where(f + r >= 1, torch.inf, grows)
    c = (f - r).clamp_min(0)
    m, curved = norm_of(c), c / (sigma**2 * length.unsqueeze(1).clamp_min(1e-300))
    # The positive root of curved / 2 d^2 + m d = room, without cancellation.
    falls = 2 * room / (m + (m.square() + 2 * curved * room).sqrt()).clamp_min(1e-300)
    return grows, torch.where(f - r <= 0, torch.inf, falls)
