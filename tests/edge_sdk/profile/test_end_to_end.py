"""What is sent while it is measured."""

from collections import Counter

from edge_sdk import EdgeRuntime
from edge_sdk.images import decode_image, find_images, fit_image
from edge_sdk.profile.end_to_end import measure


def test_no_image_is_sent_twice(bundle, server, image_folder, monkeypatch):
    """A server that sees one with new noise each time has it with less: the warm-up is of no image there is."""
    sent, predict = Counter(), EdgeRuntime.predict

    def watched(self, images):
        sent.update(image.tobytes() for image in images)
        return predict(self, images)

    monkeypatch.setattr(EdgeRuntime, "predict", watched)
    measure(bundle / "edge", [server], image_folder / "test", num_images=3, warmup=4)
    files = [image.path for image in find_images([image_folder / "test"])]
    real = {fit_image(decode_image(path), 32, 32).tobytes() for path in files}
    assert sum(sent.values()) == 3 + 4
    assert sorted(count for image, count in sent.items() if image in real) == [1, 1, 1]
