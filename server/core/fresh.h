/* A part of a payload that is in the caches once more, in the type it goes out in: what was
 * computed just now and is to be sent at once, but lies in memory, as it was written past the
 * caches. step -> [fresh] -> action -> send_queue. Pure. */
#ifndef PD_SERVER_CORE_FRESH_H
#define PD_SERVER_CORE_FRESH_H

#include "common/tensor.h"

/* Ownership: whose verb gives it says how long `bytes` stay what they are. */
struct pd_fresh {
    const void *payload; /* of which it is a part; NULL: there is none */
    enum pd_dtype dtype; /* of the copy */
    const void *bytes;   /* the copy: of the payload, as `dtype`, its bytes [begin, end) */
    uint64_t begin;
    uint64_t end;
};

#endif
