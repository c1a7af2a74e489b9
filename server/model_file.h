/* Starts an engine from a safetensors file: each rank reads the header, and its own lane's values.
 * file -> [model_file] -> engine. Before the first event; owner: the main thread. */
#ifndef PD_SERVER_MODEL_FILE_H
#define PD_SERVER_MODEL_FILE_H

#include "server/core/engine.h"

/* Errors: PD_EIO, those of pd_safetensors_parse and of pd_engine_load_model, each with the path. */
PD_MUST_CHECK
enum pd_status pd_model_file_load(struct pd_engine *engine, const char *path,
                                  struct pd_error *error);

#endif
