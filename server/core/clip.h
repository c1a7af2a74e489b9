/* Clipping by norm: the parts of blocks -> a norm -> a scale.
 * reduce -> [clip] -> gradient_norms. Pure. */
#ifndef PD_SERVER_CORE_CLIP_H
#define PD_SERVER_CORE_CLIP_H

/* What is clipped, of the whole gradient or of a group. */
struct pd_clip_options {
    double norm;      /* NaN: off */
    double norm_type; /* may be infinity */
    double value;     /* NaN: off */
};

/* A power that grows by the parts of blocks (see pd_reduce_norms), in their order, from 0; NaN once
 * a part is. The norm it is of, and back. */
double pd_clip_add(double power, double part, double norm_type);
double pd_clip_root(double power, double norm_type);
double pd_clip_power(double norm, double norm_type);

/* Source: torch.nn.utils.clip_grad_norm_: min(1, max_norm / (total_norm + 1e-6)).
 * max_norm NaN means no clipping: 1. */
double pd_clip_scale(double total_norm, double max_norm);

#endif
