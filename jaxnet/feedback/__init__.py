"""Feedback paths: paths other than Wᵀ that carry the error back.

    transpose   Wᵀ δ                                        backpropagation
    inverse     W⁻¹ δ, pinv: W⁺ δ                           undoing the layer, for a square W, or any
    random      Bᵀ δ      B: the shape of W, fixed          feedback alignment
    sign        (M ⊙ sign W)ᵀ δ   M: equal, fixed or new    sign-symmetry
    kolen_pollack  Bᵀ δ   B: learned by ∇_W, as W is        W − B → 0 with weight decay
    weight_mirror  Bᵀ δ   B: learned from noise through W   the weight mirror
    straight_through  δ                                     of a layer without weights, as if it were the identity
    direct      B e       B: (shape of a, outputs), fixed   direct feedback alignment; e = δ of the last layer with a W

δ = ∂C/∂z of a layer, or the error that another feedback path made of it. Gradients keep their form, ∇_W C = δ aᵀ.
Layers know nothing of this. A layer's own backward pass runs with B in the place of W, so it works for every layer that
uses its weights only to send the error back: convolutions, attention with a B for each of its four matrices, an LSTM
that sends it through time by the B of U. A weight is a parameter whose name begins with a capital letter. `inverse`
and `pinv` take matrices; `direct` replaces all that a layer sends back.

Sources: Lillicrap et al., Random synaptic feedback weights support error backpropagation for deep learning, 2016;
Nøkland, Direct Feedback Alignment Provides Learning in Deep Neural Networks, 2016; Liao, Leibo and Poggio, How
Important Is Weight Symmetry in Backpropagation?, 2016; Moskovitz, Litwin-Kumar and Abbott, Feedback alignment in deep
convolutional networks, 2018; Akrout et al., Deep Learning without Weight Transport, 2019; Bengio, Léonard and
Courville, Estimating or Propagating Gradients Through Stochastic Neurons, 2013.
"""

from jaxnet.feedback.feedback_path import FeedbackPath, Sent, by_transpose, feedback, feedback_paths_in, watched
from jaxnet.feedback.makers import (
    direct,
    inverse,
    kolen_pollack,
    pinv,
    random,
    sign,
    straight_through,
    transpose,
    weight_mirror,
)

__all__ = [
    "FeedbackPath",
    "Sent",
    "by_transpose",
    "direct",
    "feedback",
    "feedback_paths_in",
    "inverse",
    "kolen_pollack",
    "pinv",
    "random",
    "sign",
    "straight_through",
    "transpose",
    "watched",
    "weight_mirror",
]
