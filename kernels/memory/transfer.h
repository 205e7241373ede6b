/* Copies of bytes between the host and a card, through pinned staging memory. Dense bytes only; the
 * card converts and applies strides. Called by the thread that runs Lua. */
#ifndef CRK_TRANSFER_H
#define CRK_TRANSFER_H

#include "device/cuda.h"

/* Queues device_dst = host_src; the host memory may be reused on return. Under capture only a few
 * KiB can be recorded (as constants of the recording); more fails as crk_may_wait does. */
int crk_upload(const char *name, crk_device *d, void *device_dst, const void *host_src,
               int64_t bytes);
/* host_dst = device_src after all queued work; waits for it. */
int crk_download(const char *name, crk_device *d, void *host_dst, const void *device_src,
                 int64_t bytes);
/* Forgets the staging of a card that is about to be reset. */
void crk_transfer_lost(crk_device *d);

#endif
