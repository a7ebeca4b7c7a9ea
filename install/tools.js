'use strict';
// The tools that the build needs.

const { spawnSync } = require('node:child_process');
const path = require('node:path');
const { BuildError } = require('./once.js');

const windows = process.platform === 'win32';

const tools = [
    {
        name: 'CMake 3.21 or newer',
        isThere: () => {
            const [, major, minor] = /version (\d+)\.(\d+)/.exec(output('cmake', '--version')) ?? [0, 0, 0];
            return major * 1000 + Number(minor) >= 3021;
        },
        debian: 'cmake',
        fedora: 'cmake',
        macos: 'brew install cmake',
        windows: 'winget install Kitware.CMake'
    },
    {
        name: 'a C++ compiler',
        isThere: windows
            ? hasVisualStudio
            : () =>
                  Boolean(output('g++', '--version') || output('clang++', '--version')) &&
                  Boolean(output('ninja', '--version') || output('make', '--version')),
        debian: 'build-essential',
        fedora: 'gcc-c++ make',
        macos: 'xcode-select --install',
        windows:
            'winget install Microsoft.VisualStudio.2022.BuildTools ' +
            '--override "--passive --add Microsoft.VisualStudio.Workload.VCTools --includeRecommended"'
    },
    {
        name: 'Git',
        isThere: () => Boolean(output('git', '--version')),
        debian: 'git',
        fedora: 'git',
        macos: 'xcode-select --install',
        windows: 'winget install Git.Git'
    }
];

/** @throws BuildError that names the missing tools, and the commands that install them */
function checkTools() {
    const missing = tools.filter((tool) => !tool.isThere());
    if (missing.length === 0) {
        return;
    }
    const names = missing.map((tool) => tool.name).join(', ');
    const all = (system) => [...new Set(missing.map((tool) => tool[system]))];
    throw new BuildError(
        [
            `blockpruner compiles its addon once, and this machine lacks ${names}. To install:`,
            `    Debian, Ubuntu:  sudo apt install ${all('debian').join(' ')}`,
            `    Fedora:          sudo dnf install ${all('fedora').join(' ')}`,
            `    macOS:           ${all('macos').join(' && ')}`,
            ...all('windows').map((command, i) => `    ${i === 0 ? 'Windows:' : '        '}         ${command}`)
        ].join('\n'),
        'BUILD_IMPOSSIBLE'
    );
}

/** What a program prints; '' if there is no such program, or it fails. */
function output(program, ...args) {
    const { status, stdout } = spawnSync(program, args, { encoding: 'utf8', windowsHide: true });
    return status === 0 ? stdout.trim() : '';
}

function hasVisualStudio() {
    const where = path.join(
        process.env['ProgramFiles(x86)'] ?? 'C:\\Program Files (x86)',
        'Microsoft Visual Studio',
        'Installer',
        'vswhere.exe'
    );
    return (
        output(
            where,
            '-products',
            '*',
            '-requiresAny',
            '-property',
            'installationPath',
            '-requires',
            'Microsoft.VisualStudio.Component.VC.Tools.x86.x64',
            'Microsoft.VisualStudio.Component.VC.Tools.ARM64'
        ) !== ''
    );
}

module.exports = { checkTools };
