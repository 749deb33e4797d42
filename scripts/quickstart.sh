#!/usr/bin/env bash
# From a bare checkout to a trained, tested, used and explained recogniser, on videos made on the spot.
# Run twice, it reuses what is there. Everything it makes lies in .venv, data/synthetic and runs/quickstart.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
start=$SECONDS
run=runs/quickstart
videornn=.venv/bin/videornn

echo "== 1/6 make the videos"
"$videornn" data synthetic data/synthetic --num-train 100
echo "== 2/6 train"
"$videornn" train configs/quickstart.yaml --out "$run" --resume
echo "== 3/6 test on held-out videos, several views each"
"$videornn" test "$run/checkpoints/best.pt"
video=data/synthetic/videos/test/approach/approach_0000.mp4
echo "== 4/6 what happens in $video?"
"$videornn" infer "$run/checkpoints/best.pt" "$video" --topk 3 --json "$run/infer.json"
echo "== 5/6 what does attention look at there?"
"$videornn" explain "$run/checkpoints/best.pt" "$video" --out "$run/explain"
echo "== 6/6 all of it on one page"
"$videornn" report "$run"

echo "== done in $((SECONDS - start)) s"
.venv/bin/python - "$run/test/metrics.json" <<'PYTHON'
import json, sys

metrics = json.load(open(sys.argv[1]))
print(f"top-1 {metrics['video_top1']:.2f} % on {metrics['num_scored']} held-out videos of 10 classes")
PYTHON
echo "checkpoint  $run/checkpoints/best.pt"
echo "test        $run/test/  (metrics.json, predictions.csv, per_class.csv, confusion.png, ...)"
echo "attention   $run/explain/  (sheets, movies, numbers)"
echo "report      $run/report.html  (opens in any browser)"
echo "try it      $videornn demo $run/checkpoints/best.pt"
echo "go on       source .venv/bin/activate  (then the command is videornn, as in the README)"
echo "curves      .venv/bin/tensorboard --logdir $run/tensorboard"
