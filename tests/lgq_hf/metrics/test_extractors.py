"""One interface for the networks that sets of pictures are compared by."""

import pytest

from lgq_hf.metrics.extractors import build_extractor


def test_refuses() -> None:
    with pytest.raises(ValueError, match="weights: only for inception-2015, got the name efficientnet-lite0: leave o"):
        build_extractor("efficientnet-lite0", "a.pth")
    with pytest.raises(ValueError, match="weights and resize: only for inception-2015, got the name efficientnet-l"):
        build_extractor("efficientnet-lite0", "a.pth", resize="torch")
    with pytest.raises(ValueError, match="inception-2015 needs a file: give weights. Nothing is downloaded; see Inc"):
        build_extractor("inception-2015", resize="torch")
    with pytest.raises(ValueError, match="resize: expected tensorflow or torch, got ''"):
        build_extractor("inception-2015", "a.pth", resize="")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match="weights: no file nowhere.pth. Expected the Inception weights of FID"):
        build_extractor("inception-2015", "nowhere.pth")
    with pytest.raises(ValueError, match="extractor: expected efficientnet-lite0 or inception-2015, got 'inception'"):
        build_extractor("inception", "a.pth")  # type: ignore[arg-type]
