"""When a Fréchet distance may be called rFID: one rule, for files and for people."""

FID_EXTRACTOR = "inception-2015"
FID_PICTURES = 50_000
FRECHET, RFID = "frechet_distance", "rfid"


def frechet_key(extractor: str, pictures: int, reference: bool = True) -> str:
    """What the Fréchet distance of reconstructions and originals is called in a result.

    Args:
        extractor: the name of the network that made the features.
        pictures: how many different pictures were compared; several crops of one picture count once.
        reference: whether its weights are those that everybody uses.

    Returns:
        "rfid" for the features of Heusel et al. 2017 ("inception-2015") on 50,000 pictures or more, else
        "frechet_distance".
    """
    return RFID if extractor == FID_EXTRACTOR and pictures >= FID_PICTURES and reference else FRECHET


def frechet_label(key: str, extractor: str, pictures: int) -> str:
    """That name for people, with what the number depends on; `key` as `frechet_key` gives it."""
    if key == RFID:
        return f"rFID ({extractor}, {pictures:,} pictures)"
    return f"Fréchet distance of {extractor} features ({pictures:,} pictures; not rFID)"


__all__ = ["FID_EXTRACTOR", "FID_PICTURES", "FRECHET", "RFID", "frechet_key", "frechet_label"]
