'use strict';
// The addon that the package carries for some platforms, so that nothing need be compiled: `npm run prebuilt` makes it,
// build.js installs it.
//
//   prebuilds/PLATFORM-ARCH/blockpruner.node    the addon, stripped
//   prebuilds/PLATFORM-ARCH/blockpruner.stamp   a hash of what it was built from

const fs = require('node:fs');
const path = require('node:path');

const folder = path.resolve(__dirname, '..', 'prebuilds', `${process.platform}-${process.arch}`);
const files = { addon: path.join(folder, 'blockpruner.node'), stamp: path.join(folder, 'blockpruner.stamp') };

const isMac = process.platform === 'darwin';

/**
 * Where the addon is to look for ggml. Packages lie elsewhere in each installation, so this is written over there with
 * the place that they have; a longer one doesn't fit. On macOS, where a signed library can't be changed, it is the
 * place that npm gives them.
 */
function placeToBuildFor(packages) {
    return isMac ? `@loader_path/${usualPlace(packages)}` : PLACE;
}

const PLACE = `$ORIGIN/${'ggml-is-where-the-installation-says/'.repeat(14)}`;

function usualPlace({ prebuiltPackage }) {
    return path.posix.join('..', '..', prebuiltPackage, 'bins', path.posix.basename(prebuiltPackage));
}

/** Whether an addon is there that was built from what the package has. */
function hasPrebuilt(stamp) {
    return fs.existsSync(files.addon) && fs.existsSync(files.stamp) && fs.readFileSync(files.stamp, 'utf8') === stamp;
}

/**
 * Puts the addon where it is loaded from.
 * @param place the folder of ggml, seen from there
 * @returns false where it can't be told of that
 */
function copyPrebuilt(output, place, packages) {
    if (isMac) {
        fs.copyFileSync(files.addon, output);
        return place === usualPlace(packages);
    }
    const bytes = fs.readFileSync(files.addon);
    const at = bytes.indexOf(PLACE);
    const found = Buffer.from(`$ORIGIN/${place}`);
    if (at < 0 || found.length > PLACE.length || place.includes(':')) {
        return false;
    }
    bytes.fill(0, at, at + PLACE.length);
    found.copy(bytes, at);
    fs.writeFileSync(output, bytes);
    return true;
}

/** Keeps an addon that was built for {@link placeToBuildFor}. */
function savePrebuilt(built, stamp) {
    fs.rmSync(folder, { recursive: true, force: true });
    fs.mkdirSync(folder, { recursive: true });
    fs.copyFileSync(built, files.addon);
    fs.writeFileSync(files.stamp, stamp);
    return files.addon;
}

module.exports = { placeToBuildFor, copyPrebuilt, hasPrebuilt, savePrebuilt };
