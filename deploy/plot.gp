# Draw loss, learning rate and gradient norm over the steps of a run, one below the other.
# gnuplot -c deploy/plot.gp OUT.png CLIP_NORM STATUS.csv WORKER.csv...
#   STATUS.csv: step, lr, gradient norm, clip scale; WORKER.csv: step, seconds, loss, lr, ... with a heading
out = ARG1
clip_norm = real(ARG2)
status = ARG3
worker(i) = value(sprintf("ARG%d", i + 3))
worker_count = ARGC - 3

set terminal pngcairo size 900,900 font "sans,11" linewidth 1.5
set output out
set datafile separator ","
set multiplot layout 3,1 margins 0.11,0.97,0.07,0.96 spacing 0.05
set grid linecolor rgb "#e0e0e0"
set border 3 linecolor rgb "#808080"
set tics nomirror textcolor rgb "#404040"
set key top right
set format x ""

set logscale y
set format y "%g"
set ylabel "loss"
plot for [i=1:worker_count] worker(i) using 1:3 every ::1 with lines linewidth 1 \
    linecolor rgb word("#9ecae1 #fdae6b #a1d99b #bcbddc", 1 + (i - 1) % 4) notitle, \
    for [i=1:worker_count] worker(i) using 1:3 every ::1 smooth sbezier with lines linewidth 2 \
    linecolor rgb word("#3182bd #e6550d #31a354 #756bb1", 1 + (i - 1) % 4) title sprintf("worker %d", i - 1)
unset logscale y

set ylabel "learning rate"
set format y "%.1e"
plot worker(1) using 1:4 every ::1 with lines linewidth 2 linecolor rgb "#3182bd" notitle

set format x "%g"
set xlabel "step"
set format y "%g"
set ylabel "gradient norm"
set yrange [0:*]
plot status using 1:3 with lines linewidth 2 linecolor rgb "#756bb1" title "before clipping", \
    clip_norm with lines dashtype 2 linecolor rgb "#e6550d" title sprintf("clipped at %g", clip_norm)
unset multiplot
