// Threads that end, and are joined, when their stacks, thread structures and the robust mutexes they hold may be
// missing:
//     joins DIR [MIB [shared]]
// `shared`: the mutexes and what makes the fill last are in shared memory. In C, so that another C library (musl) can
// be tried, which lays these out differently. Each check ends all threads, looks at what they left, and starts others;
// some wait in calls meanwhile. The contract is that of README.md.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { kThreads = 24, kMutexes = 3, kPage = 4096, kPatience = 20, kLife = 1200 };

/// How a thread waits until it may end.
enum { kSemaphore, kPipe, kSleep, kPriority, kCancelled, kDetached, kWays };

/// Each alone on its page, between pages that nobody needs.
union Place {
  pthread_mutex_t mutex;
  char page[2 * kPage];
};

static union Place* robust;    // kMutexes a thread
static union Place* priority;  // one a thread: held by main, wanted by the thread (PTHREAD_PRIO_INHERIT)
static pthread_t threads[kThreads];
static sem_t may_end, ready;
static int ends[2];
static atomic_int sleepers_end, taken;
static int inherits;  // PTHREAD_PRIO_INHERIT is there
static uint64_t* ballast;
static size_t ballast_words;
static char trouble[256];

static void fail(const char* what, ...) {
  va_list arguments;
  va_start(arguments, what);
  if (trouble[0] == 0) vsnprintf(trouble, sizeof trouble, what, arguments);
  va_end(arguments);
}

static struct timespec in_seconds(int seconds) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  t.tv_sec += seconds;
  return t;
}

static void rest(long ms) {
  struct timespec t = {0, ms * 1000000};
  nanosleep(&t, NULL);
}

static void* thread(void* argument) {
  const int i = (int)(intptr_t)argument;
  char below[3 * kPage];  // of the stack, and not only its first page
  memset(below, i, sizeof below);
  for (int m = 0; m < kMutexes; ++m)
    if (pthread_mutex_lock(&robust[i * kMutexes + m].mutex) != 0) fail("thread %d cannot lock", i);
  sem_post(&ready);
  char c;
  switch (i % kWays) {
    case kSemaphore:
    case kDetached:
      while (sem_wait(&may_end) != 0) continue;
      break;
    case kPipe:
      while (read(ends[0], &c, 1) < 0 && errno == EINTR) continue;
      break;
    case kSleep:
      while (!sleepers_end) rest(3);
      break;
    case kPriority:
      if (pthread_mutex_lock(&priority[i].mutex) != 0) fail("thread %d cannot lock a mutex that inherits priority", i);
      ++taken;
      pthread_mutex_unlock(&priority[i].mutex);
      break;
    case kCancelled:
      for (;;) pause();
  }
  for (size_t b = 0; b < sizeof below; b += 512)
    if (below[b] != (char)i) fail("thread %d: its stack is not what it was", i);
  return argument;  // with the mutexes locked
}

static void start(void) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  for (int i = 0; i < kThreads * kMutexes; ++i) pthread_mutex_init(&robust[i].mutex, &attributes);
  pthread_mutexattr_init(&attributes);
  inherits = pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT) == 0;
  for (int i = 0; i < kThreads; ++i) {
    pthread_mutex_init(&priority[i].mutex, &attributes);
    pthread_mutex_lock(&priority[i].mutex);
  }
  sleepers_end = taken = 0;
  for (int i = 0; i < kThreads; ++i) {
    pthread_attr_t how;
    pthread_attr_init(&how);
    if (i % kWays == kDetached) pthread_attr_setdetachstate(&how, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&how, (size_t)(64 + 64 * (i % 3)) << 10);
    if (pthread_create(&threads[i], &how, thread, (void*)(intptr_t)i) != 0) fail("no thread %d", i);
    pthread_attr_destroy(&how);
  }
  for (int i = 0; i < kThreads; ++i) {
    const struct timespec until = in_seconds(kPatience);
    if (sem_timedwait(&ready, &until) != 0) fail("a thread does not begin");
  }
}

static int tasks(void) {
  int found = -2;
  DIR* all = opendir("/proc/self/task");
  if (all == NULL) return -1;
  while (readdir(all) != NULL) ++found;
  closedir(all);
  return found;
}

static void end_all(void) {
  sleepers_end = 1;
  for (int i = 0; i < kThreads; ++i) {
    switch (i % kWays) {
      case kSemaphore:
      case kDetached:
        sem_post(&may_end);
        break;
      case kPipe:
        if (write(ends[1], "x", 1) != 1) fail("no room in a pipe");
        break;
      case kCancelled:
        pthread_cancel(threads[i]);
        break;
    }
    pthread_mutex_unlock(&priority[i].mutex);
  }
  for (int i = 0; i < kThreads; ++i) {
    if (i % kWays == kDetached) continue;
    void* result = NULL;
    const struct timespec until = in_seconds(kPatience);
    if (pthread_timedjoin_np(threads[i], &result, &until) != 0) return fail("thread %d is not joined", i);
    const void* expected = i % kWays == kCancelled ? PTHREAD_CANCELED : (void*)(intptr_t)i;
    if (result != expected) fail("thread %d gives something else", i);
  }
  for (int ms = 0; tasks() != 1; ++ms) {
    if (ms > kPatience * 1000) return fail("%d threads are left", tasks() - 1);
    rest(1);
  }
  if (taken != kThreads / kWays) fail("%d threads got their mutex that inherits priority", taken);
}

/// Who died with a robust mutex leaves it to the next.
static void take_over(void) {
  for (int i = 0; i < kThreads * kMutexes; ++i) {
    const struct timespec until = in_seconds(kPatience);
    const int error = pthread_mutex_timedlock(&robust[i].mutex, &until);
    if (error != EOWNERDEAD)
      return fail("the robust mutex %d of thread %d: %s", i % kMutexes, i / kMutexes, strerror(error));
    pthread_mutex_consistent(&robust[i].mutex);
    pthread_mutex_unlock(&robust[i].mutex);
    pthread_mutex_destroy(&robust[i].mutex);
  }
}

static uint64_t word(size_t i) { return (i + 1) * 0x9E3779B97F4A7C15u; }

/// Of the memory that makes the fill last: 1 of 64 pages, so that most of it is still missing afterwards.
static void look_at_ballast(void) {
  for (size_t i = 0; i < ballast_words; i += 64 * kPage / 8)
    if (ballast[i] != word(i)) return fail("word %zu differs", i);
}

static void verify(void) {
  end_all();
  if (trouble[0] == 0) take_over();
  look_at_ballast();
  if (trouble[0] == 0) start();
}

/// Appears whole or not at all.
static void put(const char* dir, const char* name, const char* text) {
  char path[512], temporary[520];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  snprintf(temporary, sizeof temporary, "%s.new", path);
  const int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  const size_t length = strlen(text);
  if (fd == -1 || write(fd, text, length) != (ssize_t)length) _exit(3);
  close(fd);
  if (rename(temporary, path) == -1) _exit(3);
}

static void answer(const char* dir, char* answered) {
  char path[512], token[64] = "", text[400];
  snprintf(path, sizeof path, "%s/check", dir);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd == -1) {
    if (access(dir, F_OK) == -1 && errno == ENOENT) _exit(5);
    return;
  }
  const ssize_t got = read(fd, token, sizeof token - 1);
  close(fd);
  if (got <= 0 || strcmp(token, answered) == 0) return;
  verify();
  snprintf(text, sizeof text, "%s %s%s\n", token, trouble[0] == 0 ? "PASS" : "FAIL ", trouble);
  strcpy(answered, token);
  put(dir, "result", text);
}

static void* memory(size_t bytes, int flags) {
  void* at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) exit(1);
  return at;
}

int main(int argc, char** argv) {
  if (argc < 2) return 2;
  const size_t mib = argc > 2 ? strtoul(argv[2], NULL, 10) : 16;
  const int flags = argc > 3 && strcmp(argv[3], "shared") == 0 ? MAP_SHARED : MAP_PRIVATE;
  ballast_words = mib << 17;
  if (flags == MAP_SHARED) {
    // One object, since small ones come early.
    ballast = memory((mib << 20) + (sizeof *robust * kMutexes + sizeof *priority) * kThreads, flags);
    robust = (union Place*)(ballast + ballast_words);
    priority = robust + kThreads * kMutexes;
  } else {
    robust = memory(sizeof *robust * kThreads * kMutexes, flags);
    priority = memory(sizeof *priority * kThreads, flags);
    ballast = memory(mib << 20, flags);
  }
  for (size_t i = 0; i < ballast_words; ++i) ballast[i] = word(i);
  sem_init(&may_end, 0, 0);
  sem_init(&ready, 0, 0);
  if (pipe2(ends, O_CLOEXEC) != 0) return 1;
  start();
  if (trouble[0] != 0) return fprintf(stderr, "joins: %s\n", trouble), 1;
  char text[64], answered[64] = "";
  snprintf(text, sizeof text, "READY %d\n", (int)getpid());
  put(argv[1], "status", text);
  for (int beats = 0; beats < kLife * 100; ++beats) {
    answer(argv[1], answered);
    rest(10);
  }
  return 4;
}
