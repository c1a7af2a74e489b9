/* Layer-wise decay of the learning rate: layers nearer to the input learn slower.
 * config, model -> [layer_decay] -> step (a factor of the rate for each tensor), status. Pure.
 *
 * factor = decay^(depth_max - depth), where embeddings have depth 0, layer number i has depth i + 1
 * and what is left, such as the head, depth_max.
 * Source: Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT; timm.optim.param_groups_layer_decay.
 */
#ifndef PD_SERVER_CORE_LAYER_DECAY_H
#define PD_SERVER_CORE_LAYER_DECAY_H

#include "common/tensor.h"

/* Where the number of a layer stands in a pattern. */
#define PD_LAYER_NUMBER_MARK "{}"

/* Globs on tensor names. The texts are right behind their count, as PD_OPTION_TEXTS has them. */
struct pd_layer_patterns {
    uint32_t count;
    char texts[PD_GROUP_PATTERN_COUNT_MAX][PD_TENSOR_NAME_BYTES_MAX + 1];
};

struct pd_layer_decay_options {
    double decay;                    /* NaN: none */
    struct pd_layer_patterns layers; /* each with one mark for the number */
    struct pd_layer_patterns embeddings;
    uint64_t depth_max; /* 0: one more than the deepest layer of the model has */
};

/* The depth of what is neither an embedding nor a layer, found and checked.
 * Errors: PD_EMODEL if no tensor is of a layer, or one lies deeper than depth_max. */
PD_MUST_CHECK
enum pd_status pd_layer_decay_depth_max(const struct pd_layer_decay_options *options,
                                        const struct pd_tensor_list *model, uint64_t *depth_max,
                                        struct pd_error *error);

/* The factors of all tensors; 1 for each without a decay. *out is the caller's, for pd_heap_free.
 * Errors: those of pd_layer_decay_depth_max; PD_ENOMEM. */
PD_MUST_CHECK
enum pd_status pd_layer_decay_factors(double **out, const struct pd_layer_decay_options *options,
                                      const struct pd_tensor_list *model, struct pd_error *error);

#endif
