#include "migrate/session/loop/event_loop.h"

#include <uv.h>

#include <exception>
#include <utility>

#include "core/base/error.h"

namespace migrate {

struct EventLoop::Impl {
  uv_loop_t loop{};
  std::exception_ptr failure;
  uint64_t called = 0;  ///< handlers, ever
  bool once = false;    ///< this run ends with the turn that has called a handler
};

/// Freed by libuv's close callback, some time after the watch is gone: a handler that runs stays whole.
struct EventLoop::Handle {
  union {
    uv_handle_t any;
    uv_poll_t poll;
    uv_timer_t timer;
  };
  Impl* loop = nullptr;
  Handler handler;
  bool closed = false;

  void close() {
    closed = true;
    uv_close(&any, [](uv_handle_t* handle) { delete static_cast<Handle*>(handle->data); });
  }

  /// No exception may pass through libuv, which is C.
  static void call(uv_handle_t* of) noexcept {
    auto* self = static_cast<Handle*>(of->data);
    if (self->closed || self->loop->failure) return;
    Impl* const loop = self->loop;
    ++loop->called;
    // libuv calls the timers that are due and then waits in the same turn, with UV_RUN_ONCE, too; not if it is to stop.
    if (loop->once) uv_stop(&loop->loop);
    try {
      self->handler();
    } catch (...) {
      loop->failure = std::current_exception();
      uv_stop(&loop->loop);
    }
  }
};

namespace {

void check_uv(int result, const char* what, const char* subject) {
  if (result < 0) throw Error(what, subject, -result);
}

}  // namespace

EventLoop::Watch::Watch(Watch&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}

EventLoop::Watch& EventLoop::Watch::operator=(Watch&& other) noexcept {
  if (this == &other) return *this;
  if (handle_ != nullptr) handle_->close();
  handle_ = std::exchange(other.handle_, nullptr);
  return *this;
}

EventLoop::Watch::~Watch() {
  if (handle_ != nullptr) handle_->close();
}

EventLoop::EventLoop() : impl_(std::make_unique<Impl>()) {
  check_uv(uv_loop_init(&impl_->loop), "make", "an event loop");
}

EventLoop::~EventLoop() {
  // Handles that were closed are freed by one more turn.
  uv_run(&impl_->loop, UV_RUN_NOWAIT);
  uv_loop_close(&impl_->loop);
}

EventLoop::Watch EventLoop::poll(int fd, int events, Handler handler) {
  auto handle = std::make_unique<Handle>();
  check_uv(uv_poll_init(&impl_->loop, &handle->poll, fd), "watch", "a descriptor");
  handle->loop = impl_.get();
  handle->handler = std::move(handler);
  handle->any.data = handle.get();
  Watch watch(handle.release());
  check_uv(uv_poll_start(&watch.handle_->poll, events,
                         [](uv_poll_t* of, int, int) { Handle::call(reinterpret_cast<uv_handle_t*>(of)); }),
           "watch", "a descriptor");
  return watch;
}

EventLoop::Watch EventLoop::when_readable(int fd, Handler handler) {
  return poll(fd, UV_READABLE | UV_DISCONNECT, std::move(handler));
}

EventLoop::Watch EventLoop::when_writable(int fd, Handler handler) { return poll(fd, UV_WRITABLE, std::move(handler)); }

EventLoop::Watch EventLoop::after(std::chrono::milliseconds time, Handler handler) {
  auto handle = std::make_unique<Handle>();
  check_uv(uv_timer_init(&impl_->loop, &handle->timer), "make", "a timer");
  handle->loop = impl_.get();
  handle->handler = std::move(handler);
  handle->any.data = handle.get();
  Watch watch(handle.release());
  // Counted from now, not from when this turn of the loop began.
  uv_update_time(&impl_->loop);
  check_uv(uv_timer_start(
               &watch.handle_->timer, [](uv_timer_t* of) { Handle::call(reinterpret_cast<uv_handle_t*>(of)); },
               static_cast<uint64_t>(std::max<int64_t>(time.count(), 0)), 0),
           "start", "a timer");
  return watch;
}

void EventLoop::rethrow() {
  if (impl_->failure) std::rethrow_exception(std::exchange(impl_->failure, nullptr));
}

void EventLoop::run() {
  uv_run(&impl_->loop, UV_RUN_DEFAULT);
  rethrow();
}

void EventLoop::run_once() {
  // A turn that only frees what was closed before does not wait: libuv comes back at once (uv_backend_timeout).
  const uint64_t before = impl_->called;
  impl_->once = true;
  while (impl_->called == before && uv_run(&impl_->loop, UV_RUN_ONCE) != 0) {
  }
  impl_->once = false;
  rethrow();
}

void EventLoop::stop() { uv_stop(&impl_->loop); }

}  // namespace migrate
