/* Lets a reader run one job at a time, and waits for it before the reader is freed. */
#include "media/media.h"

void media__job_slot_init(media_job_slot *t) {
  pthread_mutex_init(&t->lock, NULL);
  pthread_cond_init(&t->idle, NULL);
}

bool media__job_slot_take(media_job_slot *t) {
  pthread_mutex_lock(&t->lock);
  bool taken = t->busy;
  t->busy = true;
  pthread_mutex_unlock(&t->lock);
  return !taken;
}

bool media__job_slot_held(media_job_slot *t) {
  pthread_mutex_lock(&t->lock);
  bool taken = t->busy;
  pthread_mutex_unlock(&t->lock);
  return taken;
}

void media__job_slot_release(media_job_slot *t) {
  pthread_mutex_lock(&t->lock);
  t->busy = false;
  pthread_cond_broadcast(&t->idle);
  pthread_mutex_unlock(&t->lock);
}

int64_t media__job_slot_run(media_job_slot *t, int (*job)(void *), void *reader) {
  int64_t id = cr__job_run(job, reader);
  if (id < 0) media__job_slot_release(t);
  return id;
}

void media__job_slot_close(media_job_slot *t) {
  t->stop = 1;
  pthread_mutex_lock(&t->lock);
  while (t->busy) pthread_cond_wait(&t->idle, &t->lock);
  pthread_mutex_unlock(&t->lock);
  pthread_cond_destroy(&t->idle);
  pthread_mutex_destroy(&t->lock);
}
