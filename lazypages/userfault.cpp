#include "lazypages/userfault.h"

#include <sys/ioctl.h>

#include <cerrno>

#include "core/base/error.h"
#include "core/base/kernel_abi.h"

namespace migrate {
namespace {

/// What a call that fills came to; `filled` is the kernel's count: bytes, or a negative errno.
FillResult result(int returned, int error, int64_t filled, const char* operation) {
  if (returned == 0 || filled > 0) return {Filled::done, static_cast<uint64_t>(filled)};
  switch (error) {
    case EEXIST:
      return {Filled::exists};
    case EAGAIN:
      return {Filled::changing};
    case ENOENT:
      return {Filled::unregistered};
    case ESRCH:
      return {Filled::dead};
    default:
      throw Error(operation, "memory that is filled while its task runs", error);
  }
}

/// The kernel looks for events, then for the mapping, then for events again (mfill_atomic() in mm/userfaultfd.c): a
/// mapping that is moved between the first two is ENOENT. Its event is outstanding by then, so that another call tells.
FillResult sure(int userfaultfd, FillResult r) {
  if (r.outcome == Filled::unregistered) r.outcome = probe(userfaultfd);
  return r;
}

FillResult zeros_at(int userfaultfd, uint64_t address, uint64_t bytes) {
  uffdio_zeropage z{.range = {address, bytes}};
  const int returned = ::ioctl(userfaultfd, UFFDIO_ZEROPAGE, &z);
  return result(returned, errno, z.zeropage, "put pages of zeros into");
}

}  // namespace

FillResult copy_pages(int userfaultfd, uint64_t address, std::span<const std::byte> data) {
  uffdio_copy c{.dst = address, .src = reinterpret_cast<uint64_t>(data.data()), .len = data.size()};
  const int returned = ::ioctl(userfaultfd, UFFDIO_COPY, &c);
  return sure(userfaultfd, result(returned, errno, c.copy, "copy pages into"));
}

FillResult zero_pages(int userfaultfd, uint64_t address, uint64_t bytes) {
  return sure(userfaultfd, zeros_at(userfaultfd, address, bytes));
}

FillResult poison_pages(int userfaultfd, uint64_t address, uint64_t bytes) {
  uffdio_poison p{.range = {address, bytes}, .mode = 0, .updated = 0};
  const int returned = ::ioctl(userfaultfd, UFFDIO_POISON, &p);
  return sure(userfaultfd, result(returned, errno, p.updated, "poison lost pages of"));
}

std::optional<FillResult> show_page(int userfaultfd, uint64_t address) {
  uffdio_continue c{.range = {address, kPageSize}};
  const int returned = ::ioctl(userfaultfd, UFFDIO_CONTINUE, &c);
  // EFAULT: a hole; EINVAL: beyond its end (shmem_get_folio_gfp() in mm/shmem.c).
  if (returned != 0 && (errno == EFAULT || errno == EINVAL) && c.mapped <= 0) return std::nullopt;
  return sure(userfaultfd, result(returned, errno, c.mapped, "show pages of"));
}

Filled ask_registered(int userfaultfd, RemoteRange range) {
  // The kernel looks for events and for the mapping first, and then says that this is not for memory that is private
  // and anonymous (mfill_atomic() in mm/userfaultfd.c).
  uffdio_continue c{.range = {range.start.get(), range.bytes()}};
  const int returned = ::ioctl(userfaultfd, UFFDIO_CONTINUE, &c);
  if (returned == 0 || errno == EINVAL) return Filled::exists;
  return sure(userfaultfd, result(returned, errno, c.mapped, "ask about pages of")).outcome;
}

void wake(int userfaultfd, RemoteRange range) noexcept {
  uffdio_range r{range.start.get(), range.bytes()};
  ::ioctl(userfaultfd, UFFDIO_WAKE, &r);
}

bool unregister(int userfaultfd, RemoteRange range) noexcept {
  uffdio_range r{range.start.get(), range.bytes()};
  return ::ioctl(userfaultfd, UFFDIO_UNREGISTER, &r) == 0;
}

Filled probe(int userfaultfd) {
  const Filled outcome = zeros_at(userfaultfd, kUserEnd - kPageSize, kPageSize).outcome;
  return outcome == Filled::changing || outcome == Filled::dead ? outcome : Filled::unregistered;
}

}  // namespace migrate
