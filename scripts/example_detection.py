"""Use the disentangled block outside video: in torchvision's Mask R-CNN, with and without the block after res4.

    python scripts/example_detection.py [--block none dnl ...] [--seeds 3] [--steps N]
    python scripts/example_detection.py --data coco --root FOLDER [--annotations FOLDER] --size 800 --lr 1e-4 --steps 90000

By default it trains on pictures drawn on the fly (drawn_shapes.py), each block in turn from the same weights and on the same
pictures, and ends with a line of JSON: AP of boxes, and the gain over no block. A ResNet-18 without its last stage keeps
this small; the block follows res4 and begins as the identity. COCO (train2017/, val2017/, annotations/) is learnt by
torchvision's Mask R-CNN on a ResNet-50. Nothing is downloaded, not even weights. Box AP needs
`pip install 'videornn[detection]'`.

With the defaults and one seed, 9 to 10 minutes each on 2 cores shared with two other trainings: box AP 59.05 % without a
block, 60.40 % with `dnl` (marker 89.65 and 91.66, objects by red 44.41 and 44.92, by cyan 43.10 and 44.62). Objects are
found, but their class is guessed, with the block as well: in so few steps it gains nothing that could be told from chance.
More steps and more seeds have not been measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from drawn_shapes import CLASSES, draw_picture
from example_rows import DEVICE, DRAWN_TESTS, TEST, add_options, batches, build_block, compare, need_root, on_device, train
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.datasets import CocoDetection
from torchvision.models import resnet18
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign, masks_to_boxes
from torchvision.transforms.v2.functional import pil_to_tensor

from videornn.errors import UserError
from videornn.system.console import complain

GRID = (2, 6)  # rows and columns of drawn pictures, so wide that without a block one end does not see the other
COCO_KEYS = {"labels": "category_id", "iscrowd": "iscrowd"}
Sample = tuple[Tensor, dict[str, Tensor]]  # image float32 [3, H, W] in 0 to 1, boxes, labels, masks, iscrowd of N things


class Data(NamedTuple):
    """The source of samples."""

    num_classes: int  # counting the background
    draw: Callable[[np.random.Generator], Sample]  # draws a training sample
    test: Callable[[int], Sample]
    num_test: int


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=["drawn", "coco"], default="drawn")
    parser.add_argument("--annotations", type=Path, help="folder of COCO's instances_*.json; ROOT/annotations by default")
    add_options(parser, steps=300, size=64, batch=8)
    arguments = parser.parse_args()
    try:
        if importlib.util.find_spec("pycocotools") is None:
            raise UserError("box AP needs pycocotools, not installed here: pip install 'videornn[detection]'")
        data = drawn(arguments) if arguments.data == "drawn" else coco(arguments)
        compare(lambda block, seed: run(block, seed, data, arguments), arguments, "AP")
    except UserError as error:
        complain(str(error))
        return 2
    return 0


def run(block: str, seed: int, data: Data, arguments: argparse.Namespace) -> dict[str, float]:
    """Train and test one network; return AP of boxes over IoU 0.5 to 0.95, at 0.5, and of each drawn class, in per cent."""
    torch.manual_seed(seed)
    small = arguments.data == "drawn"
    network = build_network(data.num_classes, arguments.size, small=small)
    body = network.backbone.body
    body.layer3 = nn.Sequential(body.layer3, build_block(block, 256 if small else 1024))  # the rest is initialised already
    network.to(DEVICE)
    torch.manual_seed(seed)  # for the random proposals

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([seed, step])
        images, targets = zip(*on_device(data.draw(rng) for _ in range(arguments.batch)), strict=True)
        return sum(network(images, targets).values())

    train(network, loss, arguments, f"{block}, seed {seed}")
    metric = MeanAveragePrecision(iou_type="bbox", class_metrics=small)
    network.eval()
    with torch.no_grad():
        for samples in batches(data.test, data.num_test, arguments.batch):
            images, targets = zip(*on_device(samples), strict=True)
            metric.update(network(images), targets)
    found = metric.compute()
    numbers = {"AP": found["map"], "AP50": found["map_50"]}
    if small:
        of_classes = zip(found["classes"].reshape(-1).tolist(), found["map_per_class"].reshape(-1), strict=True)
        numbers |= {CLASSES[label]: precision for label, precision in of_classes}
    return {name: 100 * float(number) for name, number in numbers.items()}


def build_network(num_classes: int, size: int, *, small: bool) -> MaskRCNN:
    """Build Mask R-CNN on a ResNet-50, or a small one on a ResNet-18 for small pictures.

    Trained from scratch, batch norm must learn: torchvision's frozen one would stay at means of 0 and deviations of 1.
    """
    if not small:
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5)
        return MaskRCNN(backbone, num_classes, min_size=size, max_size=size * 5 // 3)
    width, levels = 64, ["0", "1"]
    backbone = BackboneWithFPN(resnet18(weights=None), {"layer2": "0", "layer3": "1"}, [128, 256], width)
    return MaskRCNN(
        backbone,
        min_size=size,
        max_size=size * GRID[1] // GRID[0],
        rpn_anchor_generator=AnchorGenerator(((24,), (32,), (48,)), ((1.0,),) * 3),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=100,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=50,
        rpn_batch_size_per_image=64,
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
        box_head=TwoMLPHead(width * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, num_classes),
        box_batch_size_per_image=32,
        box_detections_per_img=20,
        mask_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
        mask_head=MaskRCNNHeads(width, (width,), 1),
        mask_predictor=MaskRCNNPredictor(width, width, num_classes),
    )


def drawn(arguments: argparse.Namespace) -> Data:
    """Return pictures of drawn_shapes.py, never the same twice."""

    def draw(rng: np.random.Generator) -> Sample:
        image, things, classes = draw_picture(rng, arguments.size, GRID, red=rng.random() < 0.5)
        masks = things == torch.arange(1, len(classes) + 1)[:, None, None]
        boxes = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])  # masks_to_boxes returns the last pixel inside
        labels = torch.tensor(classes)
        return image, {"boxes": boxes, "labels": labels, "masks": masks.byte(), "iscrowd": torch.zeros_like(labels)}

    return Data(
        len(CLASSES), draw, lambda index: draw(np.random.default_rng([TEST, index])), arguments.num_test or DRAWN_TESTS
    )


def coco(arguments: argparse.Namespace) -> Data:
    """Return COCO's train2017 and val2017 as torchvision reads them."""
    root = Path(need_root(arguments))
    annotations = arguments.annotations or root / "annotations"
    try:
        sets = [CocoDetection(root / part, annotations / f"instances_{part}.json") for part in ("train2017", "val2017")]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"--root {root}, --annotations {annotations}: no COCO is there: {error}") from error
    train_set, test_set = sets

    def sample(part: CocoDetection, index: int, *, crowds: bool) -> Sample:
        image, things = part[index]
        things = [thing for thing in things if min(thing["bbox"][2:]) > 0 and (crowds or not thing["iscrowd"])]
        corners = torch.tensor([thing["bbox"] for thing in things]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        masks = [torch.from_numpy(part.coco.annToMask(thing)) for thing in things]
        target = {"boxes": corners, "masks": torch.stack(masks) if masks else torch.zeros(0, *image.size[::-1]).byte()}
        target |= {
            name: torch.tensor([thing[key] for thing in things], dtype=torch.int64) for name, key in COCO_KEYS.items()
        }
        return pil_to_tensor(image).float() / 255, target

    def draw(rng: np.random.Generator) -> Sample:
        return sample(train_set, int(rng.integers(len(train_set))), crowds=False)

    num_test = min(arguments.num_test or len(test_set), len(test_set))
    return Data(1 + max(train_set.coco.cats), draw, lambda index: sample(test_set, index, crowds=True), num_test)


if __name__ == "__main__":
    sys.exit(main())
