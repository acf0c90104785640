#include "core/base/io_ring.h"

#include <liburing.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>

namespace migrate {
namespace {

/// Handing over less than this costs more than doing it.
constexpr size_t kLarge = 64 << 10;
constexpr unsigned kMostWorkers = 4;
constexpr uint64_t kNobody = UINT64_MAX;  ///< user data of an entry that was taken back

void skip(std::vector<iovec>& parts, size_t bytes) {
  auto part = parts.begin();
  for (; part != parts.end() && bytes >= part->iov_len; ++part) bytes -= part->iov_len;
  parts.erase(parts.begin(), part);
  if (bytes == 0) return;
  parts.front().iov_base = static_cast<std::byte*>(parts.front().iov_base) + bytes;
  parts.front().iov_len -= bytes;
}

}  // namespace

IoRing::Way IoRing::usual_way() {
  const char* wish = ::secure_getenv("MIGRATE_IO");
  return wish != nullptr && std::strcmp(wish, "calls") == 0 ? Way::calls : Way::ring;
}

void IoRing::Close::operator()(::io_uring* ring) const {
  ::io_uring_queue_exit(ring);
  delete ring;
}

IoRing::IoRing(unsigned depth, Way way) : way_(way), depth_(depth) {}

IoRing::~IoRing() {
  while (in_flight_ != 0) reap(true);
}

bool IoRing::make_ring() {
  if (ring_) return true;
  if (way_ == Way::calls) return false;
  auto ring = std::make_unique<::io_uring>();
  if (::io_uring_queue_init(depth_, ring.get(), 0) != 0) {
    way_ = Way::calls;
    return false;
  }
  ring_.reset(ring.release());
  // Linux 5.15; before, there are more of them than are of use.
  const unsigned workers = std::clamp(std::thread::hardware_concurrency(), 2u, kMostWorkers);
  std::array<unsigned, 2> most{workers, workers};
  ::io_uring_register_iowq_max_workers(ring_.get(), most.data());
  ops_.resize(depth_);
  free_.resize(depth_);
  std::iota(free_.begin(), free_.end(), size_t{0});
  return true;
}

void IoRing::read(uint64_t tag, int fd, std::span<const iovec> into, uint64_t offset) {
  begin({.tag = tag, .write = false, .fd = fd, .offset = offset, .parts = {into.begin(), into.end()}});
}

void IoRing::write(uint64_t tag, int fd, std::span<const iovec> from, uint64_t offset) {
  begin({.tag = tag, .write = true, .fd = fd, .offset = offset, .parts = {from.begin(), from.end()}});
}

void IoRing::begin(Op op) {
  for (const iovec& part : op.parts) op.total += part.iov_len;
  if (op.total < kLarge || op.parts.size() > IOV_MAX || !make_ring()) return by_calls(op);
  while (free_.empty()) reap(true);
  const size_t slot = free_.back();
  ops_[slot] = std::move(op);
  if (!submit(slot)) return by_calls(ops_[slot]);
  free_.pop_back();
  ++in_flight_;
}

bool IoRing::submit(size_t slot) {
  io_uring_sqe* entry = ::io_uring_get_sqe(ring_.get());
  if (entry == nullptr) return false;  // full of entries that were taken back
  const Op& op = ops_[slot];
  const auto count = static_cast<unsigned>(op.parts.size());
  if (op.write) {
    ::io_uring_prep_writev(entry, op.fd, op.parts.data(), count, op.offset);
  } else {
    ::io_uring_prep_readv(entry, op.fd, op.parts.data(), count, op.offset);
    // What is cached would be copied by the submitter, one after the other. Not so for writes: they are handed on all
    // the same, but only an entry that was tried first is queued behind others for its file, where workers do not get
    // into each other's way.
    entry->flags |= IOSQE_ASYNC;
  }
  entry->user_data = slot;
  while (::io_uring_submit(ring_.get()) == -EINTR) {
  }
  if (::io_uring_sq_ready(ring_.get()) == 0) return true;
  // It was not taken (no memory), and must not be later.
  ::io_uring_prep_nop(entry);
  entry->user_data = kNobody;
  return false;
}

void IoRing::reap(bool wait) {
  io_uring_cqe* ended = nullptr;
  while (::io_uring_peek_cqe(ring_.get(), &ended) != 0) {
    if (!wait) return;
    ::io_uring_submit_and_wait(ring_.get(), 1);  // failing, with EINTR or for want of memory, it is tried again
  }
  const uint64_t slot = ended->user_data;
  const int result = ended->res;
  ::io_uring_cqe_seen(ring_.get(), ended);
  if (slot == kNobody) return;
  --in_flight_;
  free_.push_back(slot);
  end(ops_[slot], result);
}

void IoRing::end(Op& op, int result) {
  if (result > 0) {
    op.bytes += static_cast<size_t>(result);
    skip(op.parts, static_cast<size_t>(result));
  }
  if (op.bytes == op.total) return done_.push_back({op.tag, op.bytes, 0});
  // Short or failed. A worker is not quite the process that it works for (who traces /proc/PID/mem's task, for one),
  // and may not even be started: so plain calls go on, and what they say counts.
  by_calls(op);
}

void IoRing::by_calls(Op& op) {
  int error = 0;
  while (op.bytes < op.total) {
    const int count = static_cast<int>(std::min<size_t>(op.parts.size(), IOV_MAX));
    const auto at = static_cast<off_t>(op.offset + op.bytes);
    const ssize_t n =
        op.write ? ::pwritev(op.fd, op.parts.data(), count, at) : ::preadv(op.fd, op.parts.data(), count, at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) error = errno;
    if (n == 0 && op.write) error = ENOSPC;
    if (n <= 0) break;
    op.bytes += static_cast<size_t>(n);
    skip(op.parts, static_cast<size_t>(n));
  }
  done_.push_back({op.tag, op.bytes, error});
}

std::optional<IoRing::Done> IoRing::poll() {
  if (done_.empty() && in_flight_ != 0) reap(false);
  if (done_.empty()) return std::nullopt;
  const Done done = done_.front();
  done_.pop_front();
  return done;
}

IoRing::Done IoRing::wait() {
  while (done_.empty()) reap(true);
  const Done done = done_.front();
  done_.pop_front();
  return done;
}

}  // namespace migrate
