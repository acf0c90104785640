#include "core/files/file_owners.h"

#include <sys/socket.h>

#include <algorithm>

#include "ext/ext.pb.h"

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif

namespace migrate {
namespace {

constexpr uint32_t kUnknownId = UINT32_MAX;

std::vector<uint32_t> peer_groups(int socket, const std::string& who) {
  std::vector<uint32_t> groups(16);
  for (;;) {
    auto bytes = static_cast<socklen_t>(groups.size() * sizeof(uint32_t));
    const int failed = ::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &bytes);
    const int reason = errno;
    groups.resize(bytes / sizeof(uint32_t));
    if (failed == 0) return groups;
    // With ERANGE it says how many there are.
    if (reason != ERANGE) throw Error("read the groups of the peer of", who, reason);
  }
}

}  // namespace

bool UserIds::include(const PeerCredentials& who) const {
  return uids.contains(who.uid) && gids.contains(who.gid) &&
         std::ranges::all_of(who.groups, [&](uint32_t g) { return gids.contains(g); });
}

std::string tells_of_a_stranger(uint32_t uid, uint32_t gid) {
  return ", which says that user " + std::to_string(uid) + " in group " + std::to_string(gid) +
         " made its other end (SO_PEERCRED), and the program's tasks are not that user with all its groups";
}

std::optional<PeerCredentials> peer_credentials(int socket, const std::string& who) {
  ucred told{};
  socklen_t length = sizeof told;
  check(::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &told, &length), "read the peer of", who);
  if (told.uid == kUnknownId) return std::nullopt;
  return PeerCredentials{static_cast<uint32_t>(told.pid), told.uid, told.gid, peer_groups(socket, who)};
}

void record_owner(DumpContext& context, const OpenFile& file, const std::optional<PeerCredentials>& peer) {
  ext::FileOwner owner;
  owner.set_id(file.id);
  owner.set_uid(file.st.stx_uid);
  owner.set_gid(file.st.stx_gid);
  constexpr uint32_t kPipeMode = 0600;  // as pipe(2) makes it
  if (file.link.starts_with("pipe:[") && (file.st.stx_mode & 07777U) != kPipeMode)
    owner.set_mode(file.st.stx_mode & 07777U);
  if (peer) {
    ext::PeerCredentials& p = *owner.mutable_peer();
    p.set_pid(peer->pid);
    p.set_uid(peer->uid);
    p.set_gid(peer->gid);
    p.mutable_groups()->Add(peer->groups.begin(), peer->groups.end());
  }
  context.images.write(kFileOwnersImage, kFileOwnersMagic).entry(owner);
}

FileOwners::FileOwners(const ImageSet& images, std::optional<UserIds> only) : only_(std::move(only)) {
  auto reader = images.read(kFileOwnersImage, kFileOwnersMagic);
  ext::FileOwner e;
  while (reader && reader->next(e)) {
    FileOwner owner{e.uid(), e.gid(), {}, {}};
    if (e.has_mode()) owner.mode = e.mode() & 07777U;
    if (e.has_peer()) {
      const ext::PeerCredentials& p = e.peer();
      owner.peer = PeerCredentials{p.pid(), p.uid(), p.gid(), {p.groups().begin(), p.groups().end()}};
    }
    // chown(2) and setresuid(2) take it for "as it is", which is root's.
    const bool nobody =
        e.uid() == kUnknownId || e.gid() == kUnknownId ||
        (owner.peer && (owner.peer->uid == kUnknownId || owner.peer->gid == kUnknownId ||
                        std::count(owner.peer->groups.begin(), owner.peer->groups.end(), kUnknownId) != 0));
    if (nobody) throw Corrupt(kFileOwnersImage, "a user or group id is not possible");
    owners_[e.id()] = std::move(owner);
  }
}

const FileOwner* FileOwners::recorded(uint32_t file_id) const {
  const auto it = owners_.find(file_id);
  return it == owners_.end() ? nullptr : &it->second;
}

bool FileOwners::allows(uint32_t uid, uint32_t gid) const {
  return !only_ || (only_->uids.contains(uid) && only_->gids.contains(gid));
}

FileOwner FileOwners::owner(uint32_t file_id, const Holders& holders) const {
  const FileOwner* owner = recorded(file_id);
  if (owner != nullptr && allows(owner->uid, owner->gid)) return *owner;
  return {holders.front().uid, holders.front().gid, {}, owner == nullptr ? std::nullopt : owner->mode};
}

PeerCredentials FileOwners::peer(uint32_t file_id, const Holders& holders) const {
  const FileOwner* owner = recorded(file_id);
  if (owner != nullptr && owner->peer) return *owner->peer;
  const FileCredentials& who = holders.front();
  return {0, who.uid, who.gid, who.groups};
}

void FileOwners::check_peer(uint32_t file_id, const std::string& who) const {
  const FileOwner* owner = recorded(file_id);
  if (!only_ || owner == nullptr || !owner->peer) return;
  const PeerCredentials& p = *owner->peer;
  if (!only_->include(p)) throw Refusal(who + tells_of_a_stranger(p.uid, p.gid), kStrangerRemedy);
}

void give_file(int fd, const FileOwner& to, const FileOwner& now, const std::string& who) {
  if (to.uid != now.uid || to.gid != now.gid) check(::fchown(fd, to.uid, to.gid), "set the owner of", who);
  if (to.mode) check(::fchmod(fd, *to.mode), "set the mode of", who);  // after the owner, whose change takes bits away
}

}  // namespace migrate
