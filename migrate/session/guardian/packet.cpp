#include "migrate/session/guardian/packet.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "core/base/procfs.h"
#include "core/image/bounded_parse.h"
#include "migrate/session/wire/layout_wire.h"
#include "migration.pb.h"

namespace migrate {
namespace {

constexpr size_t kPacketLimit = 64 << 10;
constexpr size_t kFdBatch = 200;
constexpr size_t kBlobLimit = size_t{1} << 30;

template <class T>
void append(std::vector<std::byte>& out, T value) {
  for (size_t i = 0; i < sizeof(T); ++i) out.push_back(static_cast<std::byte>((value >> (8 * i)) & 0xff));
}

template <class T>
T take(std::span<const std::byte>& in) {
  if (in.size() < sizeof(T)) throw Corrupt("the images from the peer", "they end in the middle");
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) value |= static_cast<T>(std::to_integer<T>(in[i]) << (8 * i));
  in = in.subspan(sizeof(T));
  return value;
}

sockaddr_un address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) throw Error("name", path, ENAMETOOLONG);
  std::memcpy(address.sun_path, path.c_str(), path.size());
  return address;
}

}  // namespace

std::pair<PacketSocket, PacketSocket> PacketSocket::pair() {
  std::array<int, 2> fds{};
  check(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds.data()), "make", "a socket pair");
  return {PacketSocket(Fd(fds[0])), PacketSocket(Fd(fds[1]))};
}

Fd PacketSocket::open_peer() const {
  ucred maker{};
  socklen_t size = sizeof maker;
  check(::getsockopt(socket_.get(), SOL_SOCKET, SO_PEERCRED, &maker, &size), "ask who made", "the guardian socket");
  std::optional<Fd> pidfd = open_pidfd(maker.pid);
  return pidfd ? std::move(*pidfd) : Fd();
}

bool PacketSocket::readable(const Deadline& deadline) const {
  for (;;) {
    pollfd p{socket_.get(), POLLIN, 0};
    const int n = ::poll(&p, 1, deadline.poll_timeout());
    if (n > 0) return true;
    if (n < 0 && errno != EINTR) throw Error("wait for", "the guardian socket", errno);
    if (deadline.passed()) return false;
  }
}

void PacketSocket::pass(std::span<const std::byte> bytes, std::span<const int> fds) {
  try {
    send_fds(socket_.get(), bytes, fds);
  } catch (const Error& e) {
    throw GuardianGone(std::string("the process at the other end of the guardian socket is gone (") + e.what() + ")");
  }
}

void PacketSocket::send(const google::protobuf::MessageLite& message) {
  const std::string text = message.SerializeAsString();
  pass(as_bytes_of(text), {});
}

PacketSocket::Outcome PacketSocket::receive(google::protobuf::MessageLite& message, const Deadline& deadline) {
  if (!readable(deadline)) return Outcome::timeout;
  std::vector<std::byte> bytes;
  std::vector<Fd> fds;
  if (!recv_fds(socket_.get(), bytes, fds, kPacketLimit)) return Outcome::closed;
  if (!parse_bounded(message, bytes)) throw Corrupt("a message between agent and guardian", "it does not parse");
  return Outcome::message;
}

void PacketSocket::send_file(int fd) { send_descriptors(std::span(&fd, 1)); }

void PacketSocket::send_blob(std::span<const std::byte> bytes) { send_file(memory_file(bytes, "migrate-blob").get()); }

void PacketSocket::send_blob(const google::protobuf::MessageLite& message) {
  const std::string text = message.SerializeAsString();
  send_blob(as_bytes_of(text));
}

std::vector<std::byte> PacketSocket::receive_blob(const Deadline& deadline) {
  return read_whole(receive_descriptors(1, deadline).front().get(), kBlobLimit);
}

void PacketSocket::receive_blob(google::protobuf::MessageLite& message, const Deadline& deadline) {
  if (!parse_bounded(message, receive_blob(deadline)))
    throw Corrupt("a message between agent and guardian", "it does not parse");
}

void PacketSocket::send_descriptors(std::span<const int> fds) {
  const std::byte tag{'F'};
  for (size_t at = 0; at < fds.size(); at += kFdBatch)
    pass(std::span(&tag, 1), fds.subspan(at, std::min(kFdBatch, fds.size() - at)));
}

std::vector<Fd> PacketSocket::receive_descriptors(size_t count, const Deadline& deadline) {
  std::vector<Fd> all;
  while (all.size() < count) {
    if (!readable(deadline)) throw Error("wait for", "descriptors from the guardian", ETIMEDOUT);
    std::vector<std::byte> bytes;
    std::vector<Fd> some;
    if (!recv_fds(socket_.get(), bytes, some, 16))
      throw GuardianGone("the guardian died while handing over descriptors");
    if (some.empty() || all.size() + some.size() > count)
      throw Error("receive", "descriptors from the guardian", EPROTO);
    for (Fd& fd : some) all.push_back(std::move(fd));
  }
  return all;
}

Fd connect_local(const std::string& path) {
  const sockaddr_un address = address_of(path);
  Fd socket(check(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "make", "a socket"));
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0) return socket;
  if (errno != ENOENT && errno != ECONNREFUSED) throw Error("connect to", path, errno);
  return {};
}

Fd listen_local(const std::string& path) {
  const sockaddr_un address = address_of(path);
  ::unlink(path.c_str());
  Fd listener(check(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "make", "a socket"));
  check(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), "bind", path);
  check(::listen(listener.get(), 4), "listen on", path);
  return listener;
}

Fd memory_file(std::span<const std::byte> bytes, const char* name) {
  Fd fd(check(::memfd_create(name, MFD_CLOEXEC), "make", "a memory file"));
  write_full(fd.get(), bytes, "a memory file");
  return fd;
}

std::vector<std::byte> read_whole(int fd, size_t limit) {
  struct stat st {};
  check(::fstat(fd, &st), "look at", "a memory file");
  const auto size = static_cast<size_t>(st.st_size);
  if (size > limit) throw Error("read", "a memory file", EFBIG);
  std::vector<std::byte> bytes(size);
  bytes.resize(pread_full(fd, bytes, 0, "a memory file"));
  return bytes;
}

std::vector<std::byte> encode_images(const ImageSet& images) {
  std::vector<std::byte> out;
  for (const auto& [name, bytes] : images.images()) {
    append(out, static_cast<uint32_t>(name.size()));
    const auto text = as_bytes_of(name);
    out.insert(out.end(), text.begin(), text.end());
    append(out, static_cast<uint64_t>(bytes.size()));
    out.insert(out.end(), bytes.begin(), bytes.end());
  }
  return out;
}

ImageSet decode_images(std::span<const std::byte> bytes) {
  ImageSet images;
  while (!bytes.empty()) {
    const auto name_size = take<uint32_t>(bytes);
    if (name_size == 0 || name_size > 255 || name_size > bytes.size()) {
      throw Corrupt("the images from the peer", "a name of impossible length");
    }
    const std::string name(reinterpret_cast<const char*>(bytes.data()), name_size);
    bytes = bytes.subspan(name_size);
    const auto size = take<uint64_t>(bytes);
    if (size > bytes.size()) throw Corrupt("the images from the peer", "one is longer than what came");
    if (images.has(name)) throw Corrupt("the images from the peer", name + " comes twice");
    images.adopt(name, {bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size)});
    bytes = bytes.subspan(size);
  }
  return images;
}

namespace {

void send_memories(PacketSocket& socket, const wire::Memories& memories, const std::vector<int>& fds) {
  socket.send_blob(memories);
  socket.send_descriptors(fds);
}

wire::Memories receive_memories(PacketSocket& socket, const Deadline& deadline) {
  wire::Memories memories;
  socket.receive_blob(memories, deadline);
  return memories;
}

}  // namespace

void send_sources(PacketSocket& socket, const std::vector<PageSource>& sources) {
  wire::Memories memories;
  std::vector<int> fds;
  for (const PageSource& source : sources) {
    wire::Memories::Memory* m = memories.add_memories();
    m->set_kind(static_cast<uint32_t>(source.memory.kind));
    m->set_id(source.memory.id);
    m->set_with_mem(true);
    for (const PageRun& run : source.runs) {
      wire::Memories::Range* r = m->add_ranges();
      r->set_address(run.address);
      r->set_bytes(run.pages * kPageSize);
      r->set_zero_ok(run.zero_ok);
    }
    fds.push_back(source.fd.get());
  }
  send_memories(socket, memories, fds);
}

std::vector<PageSource> receive_sources(PacketSocket& socket, const Deadline& deadline) {
  const wire::Memories memories = receive_memories(socket, deadline);
  std::vector<Fd> fds = socket.receive_descriptors(static_cast<size_t>(memories.memories_size()), deadline);
  std::vector<PageSource> sources;
  for (int i = 0; i < memories.memories_size(); ++i) {
    const wire::Memories::Memory& m = memories.memories(i);
    PageSource source;
    source.memory = {static_cast<MemoryId::Kind>(m.kind()), m.id()};
    for (const auto& r : m.ranges()) source.runs.push_back({r.address(), r.bytes() / kPageSize, r.zero_ok()});
    source.fd = std::move(fds[static_cast<size_t>(i)]);
    sources.push_back(std::move(source));
  }
  return sources;
}

void send_room(PacketSocket& socket, const Room& room) {
  wire::Memories memories;
  std::vector<int> fds;
  for (const MemoryId memory : room.cold) to_wire(memory, *memories.add_cold());
  for (const FillTarget& target : room.targets) {
    wire::Memories::Memory* m = memories.add_memories();
    m->set_kind(static_cast<uint32_t>(target.memory.kind));
    m->set_id(target.memory.id);
    m->set_with_userfaultfd(static_cast<bool>(target.userfaultfd));
    m->set_with_mem(static_cast<bool>(target.mem));
    for (const FillTarget::Range& range : target.ranges) {
      wire::Memories::Range* r = m->add_ranges();
      r->set_address(range.address);
      r->set_bytes(range.bytes);
      r->set_staging(range.staging);
      r->set_copy_by_userfault(range.copy_by_userfault);
    }
    if (target.userfaultfd) fds.push_back(target.userfaultfd.get());
    if (target.mem) fds.push_back(target.mem.get());
    m->set_with_process(static_cast<bool>(target.process));
    if (target.process) fds.push_back(target.process.get());
  }
  send_memories(socket, memories, fds);
}

Room receive_room(PacketSocket& socket, const Deadline& deadline) {
  const wire::Memories memories = receive_memories(socket, deadline);
  size_t count = 0;
  for (const auto& m : memories.memories())
    count += (m.with_userfaultfd() ? 1u : 0u) + (m.with_mem() ? 1u : 0u) + (m.with_process() ? 1u : 0u);
  std::vector<Fd> fds = socket.receive_descriptors(count, deadline);
  Room room;
  for (const wire::MemoryName& name : memories.cold()) room.cold.push_back(from_wire(name));
  size_t next = 0;
  for (const auto& m : memories.memories()) {
    FillTarget target;
    target.memory = {static_cast<MemoryId::Kind>(m.kind()), m.id()};
    for (const auto& r : m.ranges())
      target.ranges.push_back({r.address(), r.bytes(), r.staging(), r.copy_by_userfault()});
    if (m.with_userfaultfd()) target.userfaultfd = std::move(fds[next++]);
    if (m.with_mem()) target.mem = std::move(fds[next++]);
    if (m.with_process()) target.process = std::move(fds[next++]);
    room.targets.push_back(std::move(target));
  }
  return room;
}

}  // namespace migrate
