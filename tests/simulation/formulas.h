/* One step in double precision, from the papers' formulas, over whole tensors: what a right result
 * is close to. ledger -> [formulas] -> oracle. */
#ifndef PD_TESTS_SIMULATION_FORMULAS_H
#define PD_TESTS_SIMULATION_FORMULAS_H

#include "tests/simulation/oracle.h"

/* Whether the optimizer is one whose formulas are here. */
bool sim_formulas_known(const struct pd_optimizer *optimizer);

/* Take the average of a hessian order's estimates, which is finite, into oracle->second. */
void sim_formulas_estimate(struct sim_oracle *oracle, const struct pd_order *order);

/* Take oracle->exact one step on; the averaged gradient is finite. */
void sim_formulas_step(struct sim_oracle *oracle, const struct pd_order *order);

#endif
